"""Draws and counts the modules of a source tree.

`python -m tests.structure [FOLDER]` prints it, without a folder for this tree; `--into FILE` puts it between the two
marks in a document.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .drawing import counts, drawing, put
from .modules import circles, read

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> None:
    """Print counts, drawing, and circles if there are any; or put counts and drawing into a document."""
    if arguments[:1] == ["--into"]:
        document = Path(arguments[1])
        modules = read(ROOT)
        document.write_text(put(document.read_text(), f"{counts(modules)}\n\n{drawing(modules)}"))
        return
    modules = read(Path(arguments[0]) if arguments else ROOT)
    print(counts(modules), drawing(modules), sep="\n\n")
    for circle in circles({name: module.imports for name, module in modules.items()}):
        print("\na circle:", *circle)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Draws and counts the modules of a source tree.

`python -m tests.structure [FOLDER]` prints it, without a folder for this tree; `--write` puts it into
docs/architecture.md, and the table of states into docs/writing-a-driver.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .drawing import counts, drawing, put
from .modules import circles, lines_of_tests, read
from .states import states

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> None:
    """Print counts, drawing, and circles if there are any; or write them into the documents."""
    if arguments == ["--write"]:
        modules = read(ROOT)
        shown = {
            "architecture.md": f"{counts(modules, lines_of_tests(ROOT))}\n\n{drawing(modules)}",
            "writing-a-driver.md": states(),
        }
        for name, text in shown.items():
            document = ROOT / "docs" / name
            document.write_text(put(document.read_text(), text))
        return
    root = Path(arguments[0]) if arguments else ROOT
    modules = read(root)
    print(counts(modules, lines_of_tests(root)), drawing(modules), sep="\n\n")
    for circle in circles({name: module.imports for name, module in modules.items()}):
        print("\na circle:", *circle)


if __name__ == "__main__":
    main(sys.argv[1:])

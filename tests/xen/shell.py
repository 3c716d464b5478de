"""`make xen-shell`: the host that the tests boot, with a root shell in its dom0 on this terminal, and the tree live.

What stands in the work tree is seen in dom0 at once, at /mnt/tree, read-only; everything else there is forgotten when
the shell ends. Nothing on this machine is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.xen import build, host

TERMINAL = ("-chardev", "stdio,id=terminal,signal=off", "-serial", "chardev:terminal")
"""Every key goes to the shell, Ctrl-C too."""


def main() -> int:
    """Boot, and return QEMU's exit status when the shell has ended. Blocks: for as long as the shell lasts."""
    if reason := build.lacking():
        print(f"make xen-shell: {reason}", file=sys.stderr)
        return 1
    image = build.image()
    size = shutil.get_terminal_size()
    with tempfile.TemporaryDirectory(prefix="xenbusd-shell-") as name:
        folder, out = Path(name), Path(name) / "out"
        out.mkdir()
        (out / "store").write_text(f"{host.default_store()}\n")
        (out / "shell").write_text(f"{size.lines} {size.columns} {os.environ.get('TERM', 'vt100')}\n")
        build.write_metadata(out / "meta")
        print("booting a Xen host, some 30 seconds; exit or Ctrl-D in its shell switches it off", flush=True)
        command = host.machine(image, build.TREE, out, folder, TERMINAL, host.TELL_ERRORS, "live")
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())

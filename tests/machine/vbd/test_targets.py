"""hotplug/block-xenbusd, `xenbusctl attach target=` and the daemon understand one language: a table is run through all.

Programs stand in for Xen's store tools, so that this runs where they are not installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import targets
from xenbusd.errors import UsageError
from xenbusd.ids import Devid
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.image.params import FILTERS, PLUGINS

SCRIPT = Path(__file__).parents[3] / "hotplug" / "block-xenbusd"
BACKEND = "backend/vbd/3/51712"

STORE_TOOLS = {
    "xenstore-read": """#!/bin/sh
[ "$*" = "-p -R $XENBUS_PATH/mode $XENBUS_PATH/params" ] || exit 2
printf '%s: %s%s: %s' "$XENBUS_PATH/mode" "$MODE" "$XENBUS_PATH/params" "$PARAMS"
""",
    "xenstore-write": """#!/bin/sh
[ "$1" != -R ] || shift
while [ $# -gt 0 ]; do printf '%s\\0%s\\0' "${1#"$XENBUS_PATH/"}" "$2"; shift 2; done
""",
}


class Place:
    """A folder with an image in it, which has a name below /dev, too, and the store's tools.

    Args:
        folder: below /dev.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name, program in STORE_TOOLS.items():
            (self._bin / name).write_text(program)
            (self._bin / name).chmod(0o755)

    def fill(self, text: str) -> str:
        """Put the real names into a text of the table."""
        image = str(self._folder / "disk.img")
        return text.replace("NAME", image.removeprefix("/dev/")).replace("FOLDER", str(self._folder))

    def make(self, row: targets.Row) -> None:
        """Have the file that a row of the table names, if it names one."""
        path = Path(self.fill(row.target or "FOLDER/disk.img"))
        if path.is_relative_to(self._folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(512))

    def hotplug(self, row: targets.Row) -> tuple[int, dict[str, str]]:
        """Run the script's add; return its status and what it wrote to the store."""
        done = subprocess.run(
            [SCRIPT, "add"],
            env={
                "PATH": f"{self._bin}:{os.environ['PATH']}",
                "XENBUS_PATH": BACKEND,
                "MODE": row.mode,
                "PARAMS": self.fill(row.params),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        words = done.stdout.split("\0")[:-1]
        return done.returncode, dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def place() -> Iterator[Place]:
    """In /dev/shm, the one folder below /dev that holds files."""
    with tempfile.TemporaryDirectory(prefix="xb", dir="/dev/shm") as folder:
        yield Place(Path(folder))


@pytest.mark.parametrize("row", targets.GOOD, ids=str)
def test_what_the_script_connects(place: Place, row: targets.Row) -> None:
    """Each that the daemon serves; a path is given to QEMU for raw images only, and it is the daemon's."""
    place.make(row)
    device = {"physical-device-path": place.fill(row.target)} if row.format == "raw" else {}
    assert place.hotplug(row) == (0, {**device, "hotplug-status": "connected"})


@pytest.mark.parametrize("row", targets.GOOD, ids=str)
def test_what_can_be_attached(place: Place, row: targets.Row) -> None:
    """`xenbusctl attach` takes each, and leaves it to the script and the daemon as it was written."""
    place.make(row)
    text = place.fill(row.params)
    assert VbdBackend.directories(Devid(51712), {"target": text, "mode": row.mode}).backend["params"] == text


@pytest.mark.parametrize("row", targets.BAD, ids=str)
def test_what_nobody_takes(place: Place, row: targets.Row) -> None:
    """Attaching and the script refuse all that the daemon would refuse."""
    place.make(row)
    with pytest.raises(UsageError):
        VbdBackend.directories(Devid(51712), {"target": place.fill(row.params), "mode": row.mode})
    status, nodes = place.hotplug(row)
    assert (status, nodes["hotplug-status"]) == (1, "error")
    assert nodes["hotplug-error"]


@pytest.mark.parametrize(("name", "words"), [("PLUGINS", PLUGINS), ("FILTERS", FILTERS)])
def test_the_script_allows_the_same_of_nbdkit(name: str, words: frozenset[str]) -> None:
    """No plugin or filter that the daemon refuses, and none missing."""
    found = re.search(f"^{name}='(.*)'$", SCRIPT.read_text(), re.M)
    assert found is not None
    assert found[1].split() == sorted(words)


@pytest.mark.parametrize("text", ["FOLDER/gone.img", "NAME.gone", "qcow2:FOLDER/gone", "FOLDER", "null"])
def test_a_file_that_cannot_be_served(place: Place, text: str) -> None:
    """Absent, or neither a file nor a block device: refused by the script and at attaching alike."""
    row = targets.Row(text, "w", "")
    with pytest.raises(UsageError, match="cannot serve"):
        VbdBackend.directories(Devid(51712), {"target": place.fill(text)})
    assert place.hotplug(row)[1]["hotplug-status"] == "error"

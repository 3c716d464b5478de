"""The lines that docs/operating.md has an administrator write: the real xl understands them as meant."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.xen.dom0 import run

TEXT = (Path(__file__).parents[2] / "docs/operating.md").read_text()


def understood(folder: Path, lines: str) -> dict[str, list[dict[str, object]]]:
    """A guest's configuration with these lines, as xl understands it; no guest is made."""
    path = folder / "guest.cfg"
    kernel = next(Path("/boot").glob("vmlinuz-*"))
    path.write_text(f'name = "guest"\nkernel = "{kernel}"\nmemory = 128\n{lines}\n')
    said = run("xl", "create", "--dryrun", path)
    config: dict[str, list[dict[str, object]]] = json.loads(said[said.index("{") :])
    return config


def test_disk_lines(tmp_path: Path) -> None:
    """Every disk is ours, by its script, has the whole of its target, and the flags that its line has."""
    (block,) = re.findall(r"^disk = \[.*?^\]", TEXT, re.M | re.S)
    lines = re.findall(r"'(.*)'", block)
    disks = understood(tmp_path, block)["disks"]
    assert len(disks) == len(lines) > 5
    for line, disk in zip(lines, disks, strict=True):
        words, _, target = line.partition("target=")
        assert (disk["pdev_path"], disk["script"]) == (target, "block-xenbusd"), disk
        assert disk["vdev"] == re.findall(r"vdev=(\w+)", words)[0]
        assert bool(disk.get("readwrite", 0)) == ("access=rw" in words), disk
        assert bool(disk.get("is_cdrom", 0)) == ("devtype=cdrom" in words), disk
        assert bool(disk.get("direct_io_safe", False)) == ("direct-io-safe" in words), disk
        assert (disk.get("discard_enable") == "False") == ("no-discard" in words), disk


def test_tpm_line(tmp_path: Path) -> None:
    """A TPM has its uuid, and its backend in dom0."""
    (line,) = re.findall(r"`(vtpm = \[.*?\])`", TEXT)
    (tpm,) = understood(tmp_path, line)["vtpms"]
    assert tpm["uuid"] == re.findall(r"uuid=([0-9a-f-]+)", line)[0]
    assert tpm.get("backend_domname", "0") == "0"


def test_going_back(tmp_path: Path) -> None:
    """The line that it names for Linux's own backend is one of a raw image without a script."""
    (line,) = re.findall(r"^`('format=raw,.*')`", TEXT, re.M)
    (disk,) = understood(tmp_path, f"disk = [ {line} ]")["disks"]
    assert (disk["pdev_path"], disk["format"], disk.get("script")) == ("/srv/images/root.img", "raw", None)

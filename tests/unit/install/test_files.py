"""xenbusd.install.files: files are installed, updated and removed; those that the administrator has changed stay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from xenbusd.errors import UsageError, XenbusdError
from xenbusd.install.files import NEW, RECORD, Installation, InstalledFile

UNIT = "/etc/systemd/system/a.service"
CONFIG = "/etc/a.toml"


class Machine:
    """A root, and the lines that were said about it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._said: list[str] = []

    def open(self, *, dry_run: bool = False) -> Installation:
        """Return the installation as a new process finds it."""
        return Installation(str(self.root), dry_run=dry_run, say=self._said.append)

    def put(self, role: str = "serve", dry_run: bool = False, **contents: str) -> list[str]:
        """Install files (a=... is /etc/a.toml), and return what was said."""
        files = [
            InstalledFile({"unit": UNIT, "config": CONFIG}[name], text.encode()) for name, text in contents.items()
        ]
        self.open(dry_run=dry_run).put(role, files)
        return self.said()

    def remove(self) -> list[str]:
        """Remove everything, and return what was said."""
        self.open().remove()
        return self.said()

    def said(self) -> list[str]:
        """The lines that were said since this was last asked."""
        lines, self._said = self._said[:], []
        return lines

    def text(self, path: str) -> str:
        """A file's contents."""
        return (self.root / path[1:]).read_text()

    def edit(self, path: str, text: str) -> None:
        """Change a file, as an administrator does."""
        (self.root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path[1:]).write_text(text)

    def files(self) -> list[str]:
        """All files."""
        return sorted(f"/{path.relative_to(self.root)}" for path in self.root.rglob("*") if not path.is_dir())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """An empty root."""
    return Machine(tmp_path)


def test_twice_is_as_once(machine: Machine) -> None:
    """The first time installs, the second says that nothing has changed; both leave the same files."""
    assert machine.put(unit="1", config="1") == [f"installed {UNIT}", f"installed {CONFIG}"]
    files = machine.files()
    assert machine.put(unit="1", config="1") == [f"unchanged {UNIT}", f"unchanged {CONFIG}"]
    assert machine.files() == files == [CONFIG, UNIT, RECORD]


def test_whether_anything_changed(machine: Machine) -> None:
    """`put` returns whether a service has to be restarted."""
    file = InstalledFile(UNIT, b"1")
    assert machine.open().put("serve", [file])
    assert not machine.open().put("serve", [file])
    assert machine.open().put("serve", [])


def test_mode_and_folders(machine: Machine) -> None:
    """Everybody may run a script and enter a folder, whatever the umask is."""
    before = os.umask(0o077)
    try:
        machine.open().put("serve", [InstalledFile("/etc/xen/scripts/s", b"#!/bin/sh\n", 0o755)])
    finally:
        os.umask(before)
    assert (machine.root / "etc/xen/scripts/s").stat().st_mode & 0o777 == 0o755
    assert (machine.root / "etc/xen/scripts").stat().st_mode & 0o777 == 0o755


def test_new_version(machine: Machine) -> None:
    """A file that nobody has changed is updated."""
    machine.put(unit="1")
    assert machine.put(unit="2") == [f"updated {UNIT}"]
    assert machine.text(UNIT) == "2"


def test_changed_file_is_kept(machine: Machine) -> None:
    """A changed file stays as it is; nothing is put beside it while there is nothing new."""
    machine.put(config="1")
    machine.edit(CONFIG, "mine")
    assert machine.put(config="1") == [f"kept {CONFIG}: it has been changed"]
    assert machine.text(CONFIG) == "mine"
    assert machine.files() == [CONFIG, RECORD]


def test_new_version_of_a_changed_file(machine: Machine) -> None:
    """The new version is put beside a changed file, once, and goes when the administrator has taken it over."""
    machine.put(config="1")
    machine.edit(CONFIG, "mine")
    assert machine.put(config="2") == [f"kept {CONFIG}: it has been changed; the new version is {CONFIG}{NEW}"]
    assert (machine.text(CONFIG), machine.text(CONFIG + NEW)) == ("mine", "2")
    assert machine.put(config="2") == [f"kept {CONFIG}: it has been changed"]
    machine.edit(CONFIG, "2")
    assert machine.put(config="2") == [f"unchanged {CONFIG}"]
    assert machine.files() == [CONFIG, RECORD]


def test_somebody_elses_file(machine: Machine) -> None:
    """A file that existed before the installation is the administrator's."""
    machine.edit(CONFIG, "mine")
    assert machine.put(config="1") == [f"kept {CONFIG}: it has been changed; the new version is {CONFIG}{NEW}"]
    assert machine.text(CONFIG) == "mine"
    assert machine.remove() == [f"removed {CONFIG}{NEW}", f"kept {CONFIG}: it has been changed"]
    assert machine.files() == [CONFIG]


def test_a_link_is_never_ours(machine: Machine) -> None:
    """A masked unit, which is a link to /dev/null, is neither written through nor removed."""
    machine.put(unit="1")
    (machine.root / UNIT[1:]).unlink()
    (machine.root / UNIT[1:]).symlink_to("/dev/null")
    assert machine.put(unit="1") == [f"kept {UNIT}: it has been changed"]
    assert machine.remove() == [f"kept {UNIT}: it has been changed"]
    assert (machine.root / UNIT[1:]).is_symlink()


def test_removed_file_comes_back(machine: Machine) -> None:
    """`install` brings back a file that was deleted meanwhile."""
    machine.put(config="1")
    (machine.root / CONFIG[1:]).unlink()
    assert machine.put(config="1") == [f"installed {CONFIG}"]


def test_what_is_no_longer_wanted_goes(machine: Machine) -> None:
    """A file of the other mode, or of an old version, is removed; unless it has been changed."""
    machine.put(unit="1", config="1")
    assert machine.put(config="1") == [f"removed {UNIT}", f"unchanged {CONFIG}"]
    machine.put(unit="1", config="1")
    machine.edit(UNIT, "mine")
    assert machine.put(config="1") == [f"kept {UNIT}: it has been changed", f"unchanged {CONFIG}"]
    assert machine.text(UNIT) == "mine"


def test_remove(machine: Machine) -> None:
    """Every unchanged file is removed, and the record too; a second time finds nothing."""
    machine.put(unit="1", config="1")
    assert machine.remove() == [f"removed {CONFIG}", f"removed {UNIT}"]
    assert machine.files() == []
    assert not (machine.root / "var/lib/xenbusd").exists()
    assert machine.open().roles == ()
    assert machine.remove() == []


def test_remove_keeps_what_is_changed(machine: Machine) -> None:
    """A changed file stays and is named; one that somebody has removed is named, too; foreign files in folders stay."""
    machine.put(unit="1", config="1")
    machine.edit(CONFIG, "mine")
    (machine.root / UNIT[1:]).unlink()
    machine.edit("/var/lib/xenbusd/vtpm/state", "of a guest")
    assert machine.remove() == [
        f"kept {CONFIG}: it has been changed",
        f"gone {UNIT}: somebody has removed it",
        "kept /var/lib/xenbusd: there are files in it that are not the installation's",
    ]
    assert machine.files() == [CONFIG, "/var/lib/xenbusd/vtpm/state"]


def test_two_roles_share_a_file(machine: Machine) -> None:
    """A file of two roles stays while one of them needs it."""
    machine.put("serve", config="1", unit="1")
    assert machine.put("agent", config="1") == [f"unchanged {CONFIG}"]
    assert machine.put("serve", unit="1") == [f"unchanged {UNIT}"]
    assert machine.files() == [CONFIG, UNIT, RECORD]
    assert machine.remove() == [f"removed {CONFIG}", f"removed {UNIT}"]


def test_dry_run(machine: Machine) -> None:
    """A dry run says everything and does nothing."""
    assert machine.put(dry_run=True, unit="1") == [f"would have installed {UNIT}"]
    assert machine.files() == []
    machine.put(unit="1", config="1")
    machine.edit(CONFIG, "mine")
    files = machine.files()
    assert machine.put(dry_run=True, unit="2", config="2") == [
        f"would have updated {UNIT}",
        f"would have kept {CONFIG}: it has been changed; the new version is {CONFIG}{NEW}",
    ]
    installation = machine.open(dry_run=True)
    installation.remove()
    assert machine.said() == [f"would have kept {CONFIG}: it has been changed", f"would have removed {UNIT}"]
    assert machine.files() == files
    assert (machine.text(UNIT), machine.text(CONFIG)) == ("1", "mine")


def test_is_changed(machine: Machine) -> None:
    """A file is changed if it exists and differs from what was installed."""
    machine.put(unit="1")
    assert not machine.open().is_changed(UNIT)
    assert not machine.open().is_changed(CONFIG)  # there is none
    machine.edit(UNIT, "2")
    machine.edit(CONFIG, "1")
    assert machine.open().is_changed(UNIT)
    assert machine.open().is_changed(CONFIG)


def test_a_file_that_cannot_be_written(machine: Machine) -> None:
    """The sentence names the file; what was written before it is on record, and nothing half-written is left."""
    machine.edit("/etc/systemd", "a file where a folder should be")
    with pytest.raises(XenbusdError, match=f"cannot write .*{UNIT}: ") as caught:
        machine.put(config="1", unit="1")
    assert not isinstance(caught.value, UsageError)
    assert machine.open().recorded("serve") == {CONFIG}
    assert machine.files() == [CONFIG, "/etc/systemd", RECORD]


@pytest.mark.parametrize("text", ["{", "[]", '{"serve": 1}'])
def test_damaged_record(machine: Machine, text: str) -> None:
    """A record that does not parse is refused, with what to do."""
    machine.edit(RECORD, text)
    with pytest.raises(UsageError, match=r"installed\.json is damaged: .*; remove it and install again"):
        machine.open()


def test_record_is_for_people_too(machine: Machine) -> None:
    """The record is JSON: role, path, SHA-256 as sha256sum prints it."""
    machine.put(unit="1")
    digest = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert json.loads(machine.text(RECORD)) == {"serve": {UNIT: digest}}

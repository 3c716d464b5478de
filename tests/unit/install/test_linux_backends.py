"""xenbusd.install.linux_backends: Linux's own backends are unloaded, unless guests use them."""

from __future__ import annotations

from pathlib import Path

from tests.doubles.folder_machine import FolderMachine
from xenbusd.install.linux_backends import LinuxBackends
from xenbusd.install.plan import MODES
from xenbusd.shipped import shipped_dir


def test_exclusive_now_unloads_blkback(machine: FolderMachine) -> None:
    """Linux's own disk backend is unloaded before we start, if it has no disk."""
    machine.blkback()
    assert "unloaded xen-blkback" in machine.install("--mode", "exclusive", "--now")
    assert machine.calls()[0] == "modprobe -r xen-blkback"


def test_exclusive_now_with_disks_in_use(machine: FolderMachine) -> None:
    """Unloading a driver under a running guest would take its disk away: refused, and nothing is done."""
    machine.blkback("vbd-3-51712", "vbd-4-51712")
    (line,) = machine.install("--mode", "exclusive", "--now", status=2)
    assert "Linux's own backend serves vbd-3-51712, vbd-4-51712: shut those guests down" in line
    assert (machine.files(), machine.calls()) == (set(), [])


def test_exclusive_later_says_what_is_in_the_way(machine: FolderMachine) -> None:
    """Without --now a note names the disks, and the next command."""
    machine.blkback("vbd-3-51712")
    lines = machine.install("--mode", "exclusive")
    assert lines[-3].startswith("note: Linux's own backend serves vbd-3-51712: ")
    assert lines[-2:] == ["next: modprobe -r xen-blkback", "next: systemctl enable --now xenbusd.service"]


def test_modprobe_fails(machine: FolderMachine) -> None:
    """If the driver cannot be unloaded, the error quotes modprobe, and nothing is installed."""
    machine.blkback()
    machine.program("modprobe", 'echo "Module xen_blkback is in use." >&2; exit 1')
    (line,) = machine.install("--mode", "exclusive", "--now", status=1)
    assert "modprobe -r xen-blkback: Module xen_blkback is in use." in line
    assert machine.files() == set()


def test_a_backend_that_is_not_loaded(machine: FolderMachine) -> None:
    """It has no devices, and nothing is unloaded."""
    assert (LinuxBackends().modules, LinuxBackends().loaded(), LinuxBackends().devices()) == (["xen-blkback"], [], [])
    machine.install("--mode", "exclusive", "--now")
    assert not [call for call in machine.calls() if call.startswith("modprobe")]


def test_the_modprobe_fragment_keeps_every_one_of_them_away() -> None:
    """What is unloaded in exclusive mode must not be loaded again."""
    fragment = Path(shipped_dir("systemd"), MODES["exclusive"][1]).read_text()
    for module in LinuxBackends().modules:
        assert f"\nblacklist {module}\ninstall {module} /bin/false\n" in fragment

"""Names of disks and their numbers, as in xen-vbd-interface(7), and the keys of both directories."""

from __future__ import annotations

import pytest

from xenbusd.errors import UsageError
from xenbusd.ids import Devid
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.toolstack import LIVE, PARAMETERS, directories, parse_vdev, vdev_name

XVDA = Devid(51712)

EXTENDED = 1 << 28


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("xvda", 51712),
        ("xvda1", 51713),
        ("xvda15", 51727),
        ("xvdb", 51728),
        ("xvdb1", 51729),
        ("xvdp15", 202 << 8 | 255),
        ("xvdq", EXTENDED | 16 << 8),
        ("xvdq1", EXTENDED | 16 << 8 | 1),
        ("xvda16", EXTENDED | 16),
        ("xvda255", EXTENDED | 255),
        ("xvdz", EXTENDED | 25 << 8),
        ("xvdaa", EXTENDED | 26 << 8),
        ("xvdba", EXTENDED | 52 << 8),
        ("xvdaaa", EXTENDED | 702 << 8),
        ("sda", 2048),
        ("sdb2", 2048 + 16 + 2),
        ("sdp15", 2048 + 255),
        ("hda", 768),
        ("hda63", 768 + 63),
        ("hdb", 832),
        ("hdc", 5632),
        ("hdd1", 5632 + 64 + 1),
        ("51712", 51712),
        ("0", 0),
        ("268439552", EXTENDED | 16 << 8),
    ],
)
def test_a_name_has_its_number(name: str, number: int) -> None:
    """Each form of xen-vbd-interface(7), at both ends of its range."""
    assert parse_vdev(name) == number


@pytest.mark.parametrize(
    "name",
    [
        "",
        "xvd",
        "xvd1",
        "xvdA",
        "vda",
        "xvda-1",
        "xvda 1",
        "xvda1\n",
        "-1",
        "+1",
        "4294967296",
        "٣",
        "xvda٣",
        "/dev/xvda",
    ],
)
def test_what_is_no_name(name: str) -> None:
    """The message says what a name looks like."""
    with pytest.raises(UsageError, match="write xvda, xvdb1, sda, hda or 51712"):
        parse_vdev(name)


@pytest.mark.parametrize("name", ["xvda256", "sdq", "sda16", "hde", "hda64"])
def test_a_name_beyond_its_numbers(name: str) -> None:
    """A kind of disk that runs out of numbers sends the user to xvd."""
    with pytest.raises(UsageError, match="use an xvd name"):
        parse_vdev(name)


@pytest.mark.parametrize("name", ["xvda", "xvda15", "xvdb1", "xvdp"])
def test_a_number_has_its_name(name: str) -> None:
    """Numbers of xvd disks turn back into their names."""
    assert vdev_name(parse_vdev(name)) == name


@pytest.mark.parametrize("number", [768, 2048, 5632, EXTENDED | 16 << 8])
def test_a_number_without_a_name_of_xvd(number: int) -> None:
    """Others are given as they are."""
    assert vdev_name(number) == str(number)


def test_the_keys_of_a_plain_disk() -> None:
    """Both directories as libxl writes them, when nothing is said but the target."""
    keys = directories(XVDA, {"target": "/srv/disk.img"})
    assert keys.backend == {
        "params": "/srv/disk.img",
        "mode": "w",
        "type": "phy",
        "dev": "xvda",
        "device-type": "disk",
        "removable": "0",
        "bootable": "1",
        "discard-enable": "1",
        "specification": "xen",
        "script": "block-xenbusd",
    }
    assert keys.frontend == {"virtual-device": "51712", "device-type": "disk", "trusted": "1"}


def test_every_parameter_is_taken() -> None:
    """Each parameter ends up in its key; the frontend's directory has a cdrom's type, too."""
    given = {
        "target": "raw:/srv/cd.iso",
        "mode": "r",
        "script": "/opt/block",
        "device-type": "cdrom",
        "removable": "1",
        "discard-enable": "0",
        "direct-io-safe": "1",
    }
    assert set(given) == set(PARAMETERS)
    keys = directories(XVDA, given)
    expected = {"params": given.pop("target"), **given}
    assert {key: keys.backend[key] for key in expected} == expected
    assert keys.frontend["device-type"] == "cdrom"


def test_no_script() -> None:
    """An empty `script` leaves the key away, so that no hotplug script is waited for."""
    assert "script" not in directories(XVDA, {"target": "/srv/disk.img", "script": ""}).backend


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "target=/path/to/disk.img"),
        ({"target": ""}, "target=/path/to/disk.img"),
        ({"target": "raw:disk.img:2"}, "absolute path"),
        ({"target": "qcow2:disk.img"}, "absolute path"),
        ({"target": "bochs:/d"}, "format 'bochs' is not served"),
        ({"target": "xz:/d", "mode": "w"}, "only be read"),
        ({"target": "/d", "direct-io-safe": "yes"}, "none of 0, 1"),
        ({"target": "/d", "mode": "rw"}, "mode: 'rw' is none of w, r, w!, r!"),
        ({"target": "/d", "device-type": "floppy"}, "none of disk, cdrom"),
        ({"target": "/d", "removable": "yes"}, "none of 0, 1"),
        ({"target": "/d", "discard-enable": ""}, "none of 0, 1"),
        ({"target": "/d", "modes": "w"}, "modes: unknown parameter; did you mean mode"),
    ],
)
def test_a_wrong_parameter(parameters: dict[str, str], message: str) -> None:
    """Each is refused with what to write instead."""
    with pytest.raises(UsageError, match=message):
        directories(XVDA, parameters)


def test_what_changes_a_disk_in_use() -> None:
    """Numbers in full, as the backend reads them; everything that can be changed is there."""
    given = {"iops": "0100", "bandwidth": "50M", "pause": "1"}
    assert VbdBackend.live_keys(given) == {"iops": "100", "bandwidth": str(50 << 20), "pause": "1"}
    assert VbdBackend.live_keys({"bandwidth": "3G"}) == {"bandwidth": str(3 << 30)}
    assert set(VbdBackend.live) == set(LIVE) == set(given)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"queues": "4"}, "vbd: 'queues' cannot be changed in use; iops, bandwidth and pause can$"),
        ({"bandwith": "4"}, "vbd: 'bandwith' cannot .*; iops, bandwidth and pause can; did you mean bandwidth\\?"),
        ({"iops": "2K"}, "vbd: iops: '2K': write a number a second, as in iops=2000"),
        ({"iops": "-1"}, "write a number a second"),
        ({"bandwidth": "50MB"}, "vbd: bandwidth: '50MB': write a number a second, as in bandwidth=50M"),
        ({"bandwidth": ""}, "write a number a second"),
        ({"pause": "yes"}, "vbd: pause: 'yes' is none of 0, 1"),
    ],
)
def test_what_does_not(parameters: dict[str, str], message: str) -> None:
    """Refused with what can be changed, and how."""
    with pytest.raises(UsageError, match=message):
        VbdBackend.live_keys(parameters)

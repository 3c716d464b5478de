"""The commands as a person types them: what they print, how they exit, and what they leave in the store."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from xenbusd import toolstack
from xenbusd.bus.paths import parse_name
from xenbusd.control.protocol import DeviceDetails, FindingRecord
from xenbusd.host.sim.client import SimHost
from xenbusd.ids import Domid
from xenbusd.process.loop import run
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.testing.processes import ProcessMachine, machine


@pytest.fixture(scope="module")
def host() -> Iterator[ProcessMachine]:
    """A simulated host with dom0's daemon and guest 1's agent; the tests leave nothing on it."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, machine(Path(folder)) as host:
        host.serve()
        host.agent(1)
        yield host


def xenbusd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `xenbusd ARGUMENTS` to its end."""
    command = [sys.executable, "-m", "xenbusd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def leftovers(host: ProcessMachine) -> list[str]:
    """The devices' nodes in the store."""

    async def find() -> list[str]:
        async with StoreClient(unix_endpoint(host.store)) as store:
            backend = await store.directory("/local/domain/0/backend")
            return backend + await store.directory("/local/domain/1/device")

    return run(find())


BAD = {
    "no such domain": (["attach", "echo", "--domain", "77", "--devid", "0"], "there is no domain 77"),
    "no such class": (["attach", "tape", "--domain", "1", "--devid", "0"], "there are drivers for echo, vbd"),
    "no class at all": (["attach", "Tape!", "--domain", "1", "--devid", "0"], "is not a device class"),
    "bad devid": (["attach", "vbd", "--domain", "1", "--devid", "disk1", "target=/x"], "write xvda"),
    "bad echo devid": (["attach", "echo", "--domain", "1", "--devid", "x"], "write it in decimal"),
    "no target": (["attach", "vbd", "--domain", "1", "--devid", "xvda"], "target=/path"),
    "relative target": (["attach", "vbd", "--domain", "1", "--devid", "xvda", "target=a.img"], "absolute path"),
    "missing target": (["attach", "vbd", "--domain", "1", "--devid", "xvda", "target=/no/such"], "No such file"),
    "folder as target": (["attach", "vbd", "--domain", "1", "--devid", "xvda", "target=/"], "neither a regular file"),
    "bad mode": (["attach", "vbd", "--domain", "1", "--devid", "xvda", "target=/x", "mode=rw"], "none of w, r, w!"),
    "misspelt parameter": (["attach", "vbd", "--domain", "1", "--devid", "xvda", "traget=/x"], "unknown parameter"),
    "no parameter": (["attach", "vbd", "--domain", "1", "--devid", "xvda", "/x"], "write NAME=VALUE"),
    "twice the same": (["attach", "vbd", "--domain", "1", "--devid", "xvda", "mode=r", "mode=w"], "given twice"),
    "bad device name": (["detach", "vbd/1"], "CLASS/DOMID/DEVID"),
    "no such device": (["detach", "vbd/1/51712"], "there is no device vbd/1/51712"),
    "nothing to show": (["show", "vbd/1/51712"], "there is no device vbd/1/51712"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_gets_a_sentence_and_status_2(host: ProcessMachine, arguments: list[str], sentence: str) -> None:
    """One line on stderr says what is wrong; no traceback; nothing half-made stays in the store."""
    done = host.ctl(*arguments)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert leftovers(host) == []


def test_a_failed_attach_says_who_waits_for_what_and_takes_it_back(host: ProcessMachine) -> None:
    """A guest's domain without an agent: the frontend has not offered its ring, and the message says so."""
    with closing(SimHost(host.path, Domid(2))):
        done = host.ctl("attach", "echo", "--domain", "2", "--devid", "0", "--deadline", "0.5")
    assert done.returncode == 1
    assert "not Connected after 0.5 s" in done.stderr
    assert "the frontend in domain 2 has not offered its ring (its state is Initialising)" in done.stderr
    assert leftovers(host) == []


def test_a_hotplug_script_that_fails_is_quoted(host: ProcessMachine, tmp_path: Path) -> None:
    """The error has the script's output; nothing stays in the store."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    script = tmp_path / "block-broken"
    script.write_text("#!/bin/sh\n[ $1 = remove ] || { echo no luck today; exit 3; }\n")
    script.chmod(0o755)
    words = ("attach", "vbd", "--domain", "1", "--devid", "xvda", f"target={image}", f"script={script}")
    done = host.ctl(*words)
    assert done.returncode == 1
    assert "no luck today" in done.stderr
    assert leftovers(host) == []


def test_attach_list_show_timeline_detach(host: ProcessMachine) -> None:
    """The life of a device, for people and as JSON."""
    assert host.ctl("list").stdout == "no devices\n"
    assert host.ctl("attach", "echo", "--domain", "1", "--devid", "3").stdout == "echo/1/3 is Connected\n"
    again = host.ctl("attach", "echo", "--domain", "1", "--devid", "3")
    assert again.returncode == 2
    assert "detach it first" in again.stderr

    listed = host.ctl("list").stdout
    assert "echo/1/3" in listed
    assert listed.count("Connected") == 2
    (device,) = json.loads(host.ctl("--json", "list").stdout)
    assert (device["device"], device["backend"], device["frontend"]) == ("echo/1/3", "Connected", "Connected")

    assert json.loads(host.ctl("list", "--json").stdout) == [device]  # before the command or behind it

    shown = json.loads(host.ctl("--json", "show", "echo/1/3").stdout)
    assert {path: nodes["state"] for path, nodes in shown["nodes"].items()} == {
        "/local/domain/0/backend/echo/1/3": "4",
        "/local/domain/1/device/echo/3": "4",
    }
    assert DeviceDetails.from_json(shown["daemon"]).ring["ring_slots"] == 32
    assert "feature-upper = 1" in host.ctl("show", "echo/1/3").stdout

    done = host.ctl("--json", "detach", "echo/1/3")
    assert json.loads(done.stdout) == {"device": "echo/1/3", "detached": True}
    assert leftovers(host) == []
    diagram = host.ctl("timeline", "echo/1/3").stdout.splitlines()
    assert diagram[1].split() == ["ms", "Hotplug", "Backend", "Frontend"]
    assert [line.split()[1].strip("|<->") for line in diagram[3:6]] == ["Initialising", "InitWait", "Initialised"]
    assert "Closed" in diagram[-1]


def test_a_device_of_a_driver_domain(host: ProcessMachine) -> None:
    """It is listed with its backend's domain in its name, and taken by that name; dom0's daemon does not know it."""
    name = "echo/1/4@1"

    async def attach() -> None:
        async with StoreClient(unix_endpoint(host.store)) as store:
            await toolstack.attach(store, parse_name(name), {}, {})

    run(attach())
    (device,) = json.loads(host.ctl("list", "--json").stdout)
    assert (device["device"], device["backend"]) == (name, "Initialising")
    shown = json.loads(host.ctl("show", name, "--json").stdout)
    assert shown["daemon"] == {"unknown": f"this daemon has no device {name}; its backend is in domain 1: ask there"}
    done = host.ctl("timeline", name)
    assert (done.returncode, "its backend is in domain 1: ask there" in done.stderr) == (1, True)
    assert host.ctl("detach", name, "--force", "--deadline", "0.1").returncode == 1
    assert leftovers(host) == []


def test_show_says_what_a_driver_knows(host: ProcessMachine, tmp_path: Path) -> None:
    """A paused disk is Connected, and its guest waits: `show` says so, from the store alone, and how to end it."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    name = "vbd/1/51712"
    done = host.ctl("attach", "vbd", "--domain", "1", "--devid", "xvda", f"target={image}", "script=")
    assert done.returncode == 0, done.stderr
    assert json.loads(host.ctl("--json", "show", name).stdout)["findings"] == []
    assert host.ctl("pause", name).stdout == f"{name} is paused\n"
    shown = json.loads(host.ctl("--json", "show", name).stdout)
    assert shown["waiting"] == ""
    assert [FindingRecord.from_json(each).what for each in shown["findings"]] == ["is paused"]
    assert "\nfinding = the disk is paused; resume it with `xenbusctl resume`\n" in host.ctl("show", name).stdout
    assert host.ctl("resume", name).returncode == 0
    assert "paused;" not in host.ctl("show", name).stdout
    assert host.ctl("detach", name).returncode == 0
    assert leftovers(host) == []


def test_set_alone_shows_what_can_be_changed(host: ProcessMachine) -> None:
    """Of a class of devices, with what each parameter means; the device need not be there."""
    lines = host.ctl("set", "vbd/1/51712").stdout.splitlines()
    assert lines[0] == "iops  requests a second; 0 for no limit"
    assert list(json.loads(host.ctl("--json", "set", "vbd/1/51712").stdout)) == ["iops", "bandwidth", "pause"]
    assert host.ctl("set", "echo/1/0").stdout == "nothing of a device of class echo can be changed\n"


def test_no_wait_leaves_the_pair_to_itself(host: ProcessMachine) -> None:
    """--no-wait returns when the pair is in the store; detach takes it away again."""
    done = host.ctl("attach", "echo", "--domain", "1", "--devid", "9", "--no-wait")
    assert done.stdout == "echo/1/9 is in the store\n"
    assert host.ctl("detach", "echo/1/9").returncode == 0
    assert leftovers(host) == []


def test_daemons_refuse_what_cannot_be(tmp_path: Path) -> None:
    """No host, no domain, a bad file: a sentence and status 2."""
    config = tmp_path / "xenbusd.toml"
    config.write_text("[daemon]\nhots = 'xen'\n")
    cases = {
        ("serve", "--host", "xem"): "'xem' is no host",
        ("serve", "--host", f"sim:{tmp_path}/none"): "start one with `xenbusd sim",
        ("agent", "--host", f"sim:{tmp_path}/none"): "--domid",
        ("serve", "--config", str(config)): "did you mean host?",
        ("serve", "--config", str(tmp_path / "none.toml")): "cannot be read",
        ("serve", "--log-format", "xml"): "xml",
    }
    for arguments, sentence in cases.items():
        done = xenbusd(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert sentence in done.stderr, arguments
        assert "Traceback" not in done.stderr


def test_without_a_daemon_the_store_still_answers() -> None:
    """No `xenbusd serve`: attach says that it is not there, timeline that nobody answers."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, machine(Path(folder)) as host:
        host.agent(1)
        done = host.ctl("attach", "echo", "--domain", "1", "--devid", "0", "--deadline", "0.5")
        assert done.returncode == 1
        assert "check that `xenbusd serve` runs there, with a driver for echo" in done.stderr
        done = host.ctl("timeline", "echo/1/0")
        assert done.returncode == 1
        assert "no daemon answers" in done.stderr
        assert leftovers(host) == []

"""A package made by `xenbusctl new-driver` and installed by pip, on real Xen, where nobody knows its class."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.xen.build import NEW_DRIVER
from tests.xen.dom0 import assert_nothing_left, daemon, grants_in_use, run

SITE = Path(__file__).parents[2] / NEW_DRIVER
"""Where the package is installed; see `tests.xen.build.install_new_driver`."""
DEVICE = f"{NEW_DRIVER}/0/0"
SYSFS = Path(f"/sys/bus/xen-backend/devices/{NEW_DRIVER}-0-0")


def ctl(*words: str) -> str:
    """Run xenbusctl."""
    return run(sys.executable, "-m", "xenbusd.cli.ctl", *words, timeout_s=120)


def test_a_new_driver_is_found_and_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both daemons find the installed package; xenbusctl attaches its device from dom0 to dom0, a program's line is
    answered over a ring granted by Xen, Linux lists the device and has no driver for it; nothing is left."""
    assert (SITE / f"xenbusd_{NEW_DRIVER}-0.1.0.dist-info" / "direct_url.json").is_file()  # pip, from a folder
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SITE), os.environ["PYTHONPATH"]]))
    monkeypatch.delenv("XENBUSD_XEN")
    only = ("--class", NEW_DRIVER)
    with daemon("serve", tmp_path / "serve", *only) as serve, daemon("agent", tmp_path / "agent", *only) as agent:
        files = serve.open_files, agent.open_files
        attached = ctl("attach", NEW_DRIVER, "--domain", "0", "--devid", "0", "--deadline", "90")
        assert attached == f"{DEVICE} is Connected\n"
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(agent.run_dir / f"{NEW_DRIVER}-0.sock"))
            with program.makefile("rb") as answers:
                for number in range(100):
                    program.sendall(b"%03d drawer\n" % number)
                    assert answers.readline() == b"reward %s\n" % (b"%03d" % number)[::-1]
        assert len(grants_in_use()) == 1
        assert SYSFS.is_dir()
        assert not (SYSFS / "driver").exists()
        assert ctl("detach", DEVICE) == f"{DEVICE} is detached\n"
        serve.wait_files(files[0])
        agent.wait_files(files[1])
    assert_nothing_left()

"""A package made by `xenbusctl new-driver`, as its author would use it: pip, pytest, and two daemons that find it."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenbusd.testing.processes import machine

NAME = "sample-pair"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling is missing: `make setup` installs it"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder, just made."""
    into = tmp_path_factory.mktemp("author")
    command = [sys.executable, "-m", "xenbusd.cli.ctl", "new-driver", NAME, "--into", str(into)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return into / f"xenbusd-{NAME}"


@pytest.fixture(scope="module")
def installed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package installed from its own folder by pip, without a network, beside this Python's other packages."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action=ignore"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--target", str(site), str(folder)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
        yield


@pytest.mark.usefixtures("installed")
def test_its_tests_pass_as_generated(folder: Path) -> None:
    """pytest, in the package's folder and with its own settings, passes; conformance is most of it."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    passed = re.search(r"^(\d+) passed in", done.stdout, re.M)
    assert done.returncode == 0, done.stdout
    assert passed is not None
    assert int(passed[1]) > 20


@pytest.mark.usefixtures("installed")
def test_the_daemons_find_it() -> None:
    """xenbusd serve, xenbusd agent and xenbusctl attach know the class, and a program's line is answered."""
    with tempfile.TemporaryDirectory(prefix="xb") as name, machine(Path(name)) as host:
        host.serve()
        host.agent(1)
        done = host.ctl("attach", NAME, "--domain", "1", "--devid", "0")
        assert done.stdout == f"{NAME}/1/0 is Connected\n", done.stderr + host.logs()
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(f"{host.path}.dom1/{NAME}-0.sock")
            program.sendall(b"drawer\n")
            assert program.makefile("rb").readline() == b"reward\n"
        assert host.ctl("detach", f"{NAME}/1/0").stdout == f"{NAME}/1/0 is detached\n"

"""The places where a store is reached."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from xenbusd.errors import StoreLost
from xenbusd.store.endpoint import device_endpoint, unix_endpoint


def test_a_unix_endpoint_connects_to_the_socket(tmp_path: Path) -> None:
    """Opening it gives a connected stream socket, each time a new one."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        endpoint = unix_endpoint(path)
        for _ in range(2):
            opened = endpoint.open()
            assert isinstance(opened, socket.socket)
            with opened, listener.accept()[0] as accepted:
                opened.sendall(b"hello")
                assert accepted.recv(16) == b"hello"
    assert endpoint.socket_path == path


def test_a_unix_endpoint_without_a_path_looks_where_xens_tools_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """XENSTORED_PATH names the socket."""
    monkeypatch.setenv("XENSTORED_PATH", "/nowhere/xenstored.sock")
    assert unix_endpoint().name == "/nowhere/xenstored.sock"


def test_a_socket_that_nobody_listens_on_is_a_lost_store(tmp_path: Path) -> None:
    """The error names the path and the likely reason."""
    path = str(tmp_path / "nothing")
    with pytest.raises(StoreLost, match=f"{path}.*is xenstored running"):
        unix_endpoint(path).open()


def test_a_device_endpoint_opens_the_device_without_blocking(tmp_path: Path) -> None:
    """The descriptor is non-blocking and not inherited."""
    path = tmp_path / "xenbus"
    path.touch()
    fd = device_endpoint(str(path)).open()
    assert isinstance(fd, int)
    try:
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_a_device_that_is_not_there_is_a_lost_store(tmp_path: Path) -> None:
    """The error asks whether this is a Xen domain."""
    with pytest.raises(StoreLost, match="is this a Xen domain"):
        device_endpoint(str(tmp_path / "xenbus")).open()

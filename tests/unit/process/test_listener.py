"""Sockets that we listen on."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from xenbusd.errors import UsageError
from xenbusd.process.listener import Listener, answers


def listening(path: str) -> closing[Listener]:
    """Listen for packets, for the length of a block."""
    listener = Listener(path, socket.SOCK_SEQPACKET)
    listener.sock.listen()
    return closing(listener)


def test_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The socket file is accessible to its owner alone."""
    path = str(tmp_path / "host")
    with listening(path), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        client.connect(path)


def test_dead_socket_is_replaced(tmp_path: Path) -> None:
    """A socket file that nobody listens on any more is replaced."""
    path = str(tmp_path / "host")
    Listener(path).sock.close()
    with listening(path), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(path)


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_living_socket_is_left_alone(tmp_path: Path, kind: socket.SocketKind) -> None:
    """If another process listens there, the path is refused and its socket stays."""
    path = str(tmp_path / "host")
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(path)
        living.listen()
        with pytest.raises(UsageError, match="in use"):
            Listener(path)
        assert os.path.exists(path)


def test_other_file_is_left_alone(tmp_path: Path) -> None:
    """A file that is no socket is never removed."""
    path = tmp_path / "host"
    path.write_text("precious")
    with pytest.raises(UsageError, match="no socket"):
        Listener(str(path))
    assert path.read_text() == "precious"


@pytest.mark.parametrize(("end", "said"), [("missing/host", "No such file"), ("x" * 120, "too long")])
def test_impossible_path_is_named(tmp_path: Path, end: str, said: str) -> None:
    """A missing folder and an over-long path are the user's mistakes, and the message says which."""
    path = str(tmp_path / end)
    with pytest.raises(UsageError, match=said) as caught:
        Listener(path)
    assert path in str(caught.value)


def test_another_ones_socket_is_not_removed(tmp_path: Path) -> None:
    """`close` removes its own file, and not another one that has taken its place."""
    path = tmp_path / "host"
    listener = Listener(str(path))
    path.rename(tmp_path / "moved")
    path.write_text("somebody else's")
    listener.close()
    listener.close()
    assert path.read_text() == "somebody else's"


def test_a_socket_answers_once_its_owner_listens(tmp_path: Path) -> None:
    """A bound socket whose owner does not listen yet, or does not listen any more, answers nobody."""
    path = str(tmp_path / "control.sock")
    assert not answers(path)
    with closing(Listener(path)) as listener:
        assert not answers(path)
        listener.sock.listen()
        assert answers(path)
    assert not answers(path)

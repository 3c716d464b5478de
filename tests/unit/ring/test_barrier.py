"""xenbusd.ring.barrier: the choice of the fence; tests/machine/bus/test_fence.py shows that it fences."""

from __future__ import annotations

import ctypes
import importlib.util
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest

from xenbusd.errors import XenbusdError
from xenbusd.ring import barrier


def fresh(monkeypatch: pytest.MonkeyPatch, *, machine: str, libatomic: bool) -> ModuleType:
    """The module as it would come up on another machine."""

    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("platform.machine", lambda: machine)
    if not libatomic:
        monkeypatch.setattr(ctypes, "PyDLL", missing)
    assert barrier.__spec__ is not None
    assert barrier.__spec__.origin is not None
    spec = importlib.util.spec_from_file_location("barrier_elsewhere", barrier.__spec__.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fence_can_be_called_again_and_again() -> None:
    """It takes no argument and leaves nothing behind."""
    for _ in range(1000):
        barrier.fence()


def test_libatomic_is_used_without_giving_up_the_gil() -> None:
    """The call is libatomic's atomic_thread_fence(__ATOMIC_SEQ_CST), through PyDLL."""
    try:
        ctypes.PyDLL("libatomic.so.1")
    except OSError:
        pytest.skip("libatomic.so.1 is not installed (Debian: libatomic1)")
    call = barrier.fence.func  # type: ignore[attr-defined]
    assert call.__name__ == "atomic_thread_fence"
    assert barrier.fence.args == (5,)  # type: ignore[attr-defined]
    assert call.argtypes == [ctypes.c_int]
    assert call.restype is None
    assert call._flags_ & 0x4, "FUNCFLAG_PYTHONAPI: the GIL is kept"


def test_without_libatomic_x86_has_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock's locked instruction is a full fence there; it is left unlocked."""
    module = fresh(monkeypatch, machine="x86_64", libatomic=False)
    assert module.ORDERED
    assert module.fence.__name__ == "locked"
    module.fence()
    module.fence()  # would hang if the first had kept it


def test_without_libatomic_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else there is known to fence; the message names the package."""
    with pytest.raises(XenbusdError, match=r"install libatomic \(Debian: libatomic1\)"):
        fresh(monkeypatch, machine="aarch64", libatomic=False)


@pytest.mark.parametrize(
    ("machine", "ordered"), [("x86_64", True), ("i686", True), ("aarch64", False), ("riscv64", False)]
)
def test_only_x86_orders_loads_and_stores_by_itself(
    monkeypatch: pytest.MonkeyPatch, machine: str, ordered: bool
) -> None:
    """Elsewhere the producer's stores and the consumer's loads are fenced as well."""
    monkeypatch.setattr(ctypes, "PyDLL", lambda _: SimpleNamespace(atomic_thread_fence=Mock()))
    assert fresh(monkeypatch, machine=machine, libatomic=True).ORDERED is ordered

"""Choosing a host by its name on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenbusd.errors import UsageError
from xenbusd.host.choose import open_host
from xenbusd.host.sim.client import SimHost
from xenbusd.host.sim.thread import broker_in_thread

without_xen = pytest.mark.skipif(os.path.exists("/dev/xen/evtchn"), reason="this is a Xen domain")


@pytest.mark.parametrize("spec", ["", "sim", "sim:", "kvm", "xen:0", "Xen", "/run/host"])
def test_unknown_spec_is_refused_with_what_is_allowed(spec: str) -> None:
    """The message repeats what was said, and names both kinds."""
    with pytest.raises(UsageError, match="say xen, or sim:PATH") as caught:
        open_host(spec)
    assert repr(spec) in str(caught.value)


@without_xen
def test_missing_xen_says_what_is_missing() -> None:
    """Without Xen the message names the devices, the modules, and the way out."""
    with pytest.raises(UsageError, match=r"/dev/xen/evtchn and /dev/xen/gntdev missing.*modprobe.*sim:PATH"):
        open_host("xen")


def test_domid_cannot_be_chosen_on_xen() -> None:
    """On real Xen a process is in the domain that it is in."""
    with pytest.raises(UsageError, match="domain 3 cannot be chosen"):
        open_host("xen", domid=3)


@pytest.mark.parametrize(("domid", "is_in"), [(None, 0), (0, 0), (12, 12)])
def test_sim_opens_the_domain_that_was_asked_for(tmp_path: Path, domid: int | None, is_in: int) -> None:
    """Without a domid a process is in domain 0; a path may contain colons."""
    path = str(tmp_path / "a:b")
    with broker_in_thread(path):
        host = open_host(f"sim:{path}", domid=domid)
        assert isinstance(host, SimHost)
        assert (host.name, host.domid) == (f"sim:{path}", is_in)
        host.close()

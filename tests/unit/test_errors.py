"""xenbusd.errors: the tree of errors by their culprit, and the text of each."""

from __future__ import annotations

import errno
import inspect

import pytest

from xenbusd import errors
from xenbusd.errors import (
    EventChannelError,
    GrantError,
    HotplugError,
    HypercallError,
    NodeNotFound,
    OtherendError,
    ResourceError,
    StoreError,
    StoreLost,
    XenbusdError,
)

ALL = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__]


@pytest.mark.parametrize("error", ALL)
def test_every_error_has_the_one_base(error: type[Exception]) -> None:
    """`except XenbusdError` catches whatever we raise on purpose, and never a cancellation."""
    assert issubclass(error, XenbusdError)
    assert XenbusdError.__base__ is Exception


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_in_the_modules_table(error: type[Exception]) -> None:
    """The table at the head of the module is complete."""
    assert errors.__doc__ is not None
    assert error.__name__ in errors.__doc__


def test_blame_does_not_overlap() -> None:
    """The other end's faults, the store's refusals and its loss, and the hypervisor's are four different things."""
    families = (OtherendError, StoreError, StoreLost, HypercallError)
    for error in ALL:
        assert sum(issubclass(error, family) for family in families) <= 1


def test_context_is_kept_beside_the_sentence() -> None:
    """Facts for the log line do not get into the sentence."""
    error = OtherendError("the ring is upside down", prod=7)
    assert str(error) == "the ring is upside down"
    assert error.context == {"prod": 7}


def test_a_store_error_names_operation_path_and_reason() -> None:
    """StoreError: what was asked, about which path, and the reason in words."""
    error = NodeNotFound("READ", "/a/b", errno.ENOENT)
    assert str(error) == "store: READ /a/b: No such file or directory"
    assert (error.op, error.path, error.errno) == ("READ", "/a/b", errno.ENOENT)
    assert error.context == {"op": "READ", "path": "/a/b", "errno": errno.ENOENT}
    assert str(StoreError("INTRODUCE", "", errno.EINVAL)) == "store: INTRODUCE -: Invalid argument"


@pytest.mark.parametrize("error", [GrantError, EventChannelError])
def test_a_hypercall_error_names_the_call(error: type[HypercallError]) -> None:
    """HypercallError: the library function as its header spells it, with what it was asked to do."""
    caught = error("xengnttab_map_grant_refs", errno.EINVAL, "domain 3, references 8, 9")
    assert str(caught) == "xengnttab_map_grant_refs(domain 3, references 8, 9): Invalid argument"
    assert caught.context == {"call": "xengnttab_map_grant_refs", "errno": errno.EINVAL}


def test_a_hotplug_error_shows_what_the_script_printed() -> None:
    """HotplugError: script, status and the end of its output, or that there was none."""
    error = HotplugError("/etc/xen/scripts/block", 1, "no such file")
    assert str(error) == "hotplug script /etc/xen/scripts/block exited with 1: no such file"
    assert (error.script, error.status, error.stderr_tail) == ("/etc/xen/scripts/block", 1, "no such file")
    assert str(HotplugError("x", -9, "")) == "hotplug script x exited with -9: no output"


def test_an_image_error_has_the_number_for_the_error_node() -> None:
    """ResourceError: the sentence for the administrator and the errno for the device's error node."""
    error = ResourceError("/srv/a.img is a folder", errno.EISDIR)
    assert str(error) == "/srv/a.img is a folder"
    assert error.errno == errno.EISDIR

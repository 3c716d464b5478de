"""The limit on open files."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from xenbusd.process.descriptors import ENOUGH, allow_many


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_soft_limit_is_raised_as_far_as_may_be() -> None:
    """The usual 1024 becomes what the hard limit allows, up to what is enough; the hard limit stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    allow_many()
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (wanted, hard)


def test_higher_limit_is_never_lowered() -> None:
    """A second call, or a limit that is higher already, changes nothing."""
    allow_many()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_many()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

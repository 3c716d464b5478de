"""The duties of every driver pair, as tests that a driver's package gets by naming its two classes:

    class TestConformance(PairConformance):
        backend, frontend, readme = MyBackend, MyFrontend, Path(__file__).parents[1] / "README.md"

pytest runs each check of `xenbusd.testing.checks` on a simulated machine. Write `use`, too: without it the tests see
only that the pair connects, not that it works.

Decision: D27.
"""

from __future__ import annotations

import sys

import pytest

if "xenbusd.testing.checks" not in sys.modules:
    pytest.register_assert_rewrite("xenbusd.testing.checks")

from xenbusd.testing.checks import PairChecks
from xenbusd.testing.checks.cases import checks, variants


@pytest.mark.asyncio
class PairConformance(PairChecks):
    """Derive a class called `Test...` from this, and describe your pair in it, as `PairUnderTest` says."""


for _, _check in checks(PairChecks):
    for _argument, _values in variants(_check).items():
        # A value of an enum is shown as its own value, "backend"; any other as pytest shows it.
        pytest.mark.parametrize(_argument, _values, ids=lambda value: getattr(value, "value", None))(_check)

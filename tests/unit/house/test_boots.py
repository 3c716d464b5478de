"""tests/xen/boots.py: how the tests of real Xen are divided into boots of the host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.boots import Planned, plan

DEFAULT, OTHER = "oxenstored", "xenstored"

a_test = st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from((DEFAULT, DEFAULT, OTHER)))


@given(st.lists(a_test, unique=True), st.integers(1, 3))
def test_every_test_has_one_boot_with_its_store(tests: list[tuple[int, int, str]], at_once: int) -> None:
    """No test is lost or run twice, no boot is empty, and the tests of a file are with one boot of their store."""
    items = [(f"test_{file}.py::test_{number}[{store}]", store) for file, number, store in sorted(tests)]
    boots = plan(items, at_once)
    assert sorted((item, boot.store) for boot in boots for item in boot.items) == sorted(items)
    assert all(boot.items for boot in boots)
    places = {(boot.store, item.partition("::")[0]): number for number, boot in enumerate(boots) for item in boot.items}
    for number, boot in enumerate(boots):
        assert all(places[boot.store, item.partition("::")[0]] == number for item in boot.items)


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_default_stores_tests_are_divided(at_once: int) -> None:
    """Four files of one size have a boot each if two run side by side, or one together; the other store is last."""
    items = [(f"{file}.py::test_{number}", DEFAULT) for file in "abcd" for number in range(3)]
    names = tuple(item for item, _ in items)
    other = ("a.py::test_0[xenstored]", OTHER)
    quarters = [Planned(DEFAULT, names[first : first + 3]) for first in range(0, 12, 3)]
    default = [Planned(DEFAULT, names)] if at_once == 1 else quarters
    assert plan([other, *items], at_once) == [*default, Planned(OTHER, (other[0],))]

"""A batch of grant copies: one call, and each failure goes to its owner."""

from __future__ import annotations

import pytest

from tests.doubles.fake_grants import FRONTEND, FakeGrants
from xenbusd.grants.copies import CopyBatch


@pytest.fixture
def grants() -> FakeGrants:
    """A frontend that has granted the pages 1, 2 and 3."""
    return FakeGrants([1, 2, 3])


def test_a_batch_is_one_call(grants: FakeGrants) -> None:
    """Copies in both directions, in the order in which they were added, each to its place."""
    batch: CopyBatch[str] = CopyBatch(grants, FRONTEND)
    taken = bytearray(4)
    batch.add("read", 2, 100, memoryview(b"abc"), to_grant=True)
    batch.add("write", 1, 8, memoryview(taken), to_grant=False)
    assert grants.copy_calls == []
    assert batch.run() == []
    [call] = grants.copy_calls
    assert [(copy.gref, copy.to_grant) for copy in call] == [(2, True), (1, False)]
    assert taken == b"\x01" * 4
    assert grants.pages[2][99:104] == b"\x02abc\x02"


def test_a_copy_that_fails_is_its_owner_s(grants: FakeGrants) -> None:
    """Each owner with a failed copy is named once, and the copies of the others are done (XSA-361)."""
    batch: CopyBatch[str] = CopyBatch(grants, FRONTEND)
    good = bytearray(1)
    for gref in (98, 1, 99):
        batch.add("bad", gref, 0, memoryview(bytearray(1)), to_grant=False)
    batch.add("good", 3, 0, memoryview(good), to_grant=False)
    batch.add("worse", 97, 0, memoryview(bytearray(1)), to_grant=False)
    assert batch.run() == ["bad", "worse"]
    assert good == b"\x03"


def test_a_batch_that_is_refused(grants: FakeGrants) -> None:
    """Nothing is known of any copy then: all owners have failed, each once."""
    batch: CopyBatch[int] = CopyBatch(grants, FRONTEND)
    grants.copies_fail = True
    for owner in (7, 8, 7):
        batch.add(owner, 1, 0, memoryview(bytearray(1)), to_grant=False)
    assert batch.run() == [7, 8]


def test_an_empty_batch_is_no_call(grants: FakeGrants) -> None:
    """So is one that has been run."""
    batch: CopyBatch[int] = CopyBatch(grants, FRONTEND)
    assert batch.run() == []
    batch.add(1, 1, 0, memoryview(bytearray(1)), to_grant=False)
    batch.run()
    assert batch.run() == []
    assert len(grants.copy_calls) == 1

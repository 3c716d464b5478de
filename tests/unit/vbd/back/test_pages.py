"""Access to the frontend's pages: mapped and kept, or copied a batch at a time."""

from __future__ import annotations

import pytest

from tests.doubles.fake_grants import FRONTEND, FakeGrants
from xenbusd.ids import PAGE_SIZE
from xenbusd_vbd.back.pages import PERSISTENT_MAX, CopiedPages, Pages, PersistentPages
from xenbusd_vbd.image.engine import Job
from xenbusd_vbd.protocol import DISCARD, ERROR, FLUSH_DISKCACHE, INDIRECT, OKAY, READ, SEGMENTS_MAX, WRITE, Request

Kind = type[PersistentPages] | type[CopiedPages]

BOTH = pytest.mark.parametrize("kind", [PersistentPages, CopiedPages])


def request(op: int, *grefs: int, first: int = 0, last: int = 7) -> Request:
    """A request for the same part of each of these pages."""
    count = len(grefs)
    return Request(op, 1, 0, (last - first + 1) * count, grefs, (first,) * count, (last,) * count)


def begin(pages: Pages, requests: list[Request]) -> list[Job]:
    """Begin requests; check that the jobs that failed are those that are returned as lost."""
    jobs, lost = pages.begin(requests)
    assert lost == [job for job in jobs if job.status != OKAY]
    return jobs


def statuses(jobs: list[Job]) -> list[int]:
    """What would be answered."""
    return [job.status for job in jobs]


def fill(job: Job, byte: bytes) -> None:
    """Do what an image does for a read."""
    for buffer in job.buffers:
        buffer[:] = byte * len(buffer)


# -- both --------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_write_sees_the_data_of_its_segments(kind: Kind) -> None:
    """One buffer for each segment, as long as it is and with what is in that part of the page."""
    grants = FakeGrants([1, 2])
    grants.pages[2][512 * 3 : 512 * 5] = b"x" * 512 + b"y" * 512
    pages = kind(grants, FRONTEND)
    [whole, part] = begin(pages, [request(WRITE, 1), request(WRITE, 2, first=3, last=4)])
    assert [bytes(buffer) for buffer in whole.buffers] == [b"\x01" * PAGE_SIZE]
    assert [bytes(buffer) for buffer in part.buffers] == [b"x" * 512 + b"y" * 512]
    pages.finish([whole, part])


@BOTH
def test_a_read_changes_exactly_its_segments(kind: Kind) -> None:
    """Data lands in the sectors that the request names, and the rest of each page stays."""
    grants = FakeGrants([1, 2])
    pages = kind(grants, FRONTEND)
    jobs = begin(pages, [request(READ, 2, 1, first=2, last=5)])
    fill(jobs[0], b"r")
    pages.finish(jobs)
    for gref in (1, 2):
        byte = bytes([gref])
        assert bytes(grants.pages[gref]) == byte * 1024 + b"r" * 2048 + byte * 1024


@BOTH
def test_a_page_that_is_not_granted_fails_its_request_only(kind: Kind) -> None:
    """In a batch, a request that names such a page gets ERROR; its neighbours are carried out (XSA-361)."""
    grants = FakeGrants([1, 2, 3])
    pages = kind(grants, FRONTEND)
    jobs = begin(pages, [request(WRITE, 1), request(WRITE, 2, 99), request(WRITE, 98), request(WRITE, 3)])
    assert statuses(jobs) == [OKAY, ERROR, ERROR, OKAY]
    assert [bytes(jobs[n].buffers[0][:1]) for n in (0, 3)] == [b"\x01", b"\x03"]
    pages.finish(jobs)
    assert statuses(jobs) == [OKAY, ERROR, ERROR, OKAY]


@BOTH
def test_no_job_keeps_its_buffers(kind: Kind) -> None:
    """Once finished, a job holds nothing of the frontend's."""
    pages = kind(FakeGrants([1]), FRONTEND)
    jobs = begin(pages, [request(READ, 1), request(WRITE, 1, first=1, last=1)])
    pages.finish(jobs)
    assert [job.buffers for job in jobs] == [[], []]


@BOTH
@pytest.mark.parametrize("op", [FLUSH_DISKCACHE, DISCARD])
def test_a_request_without_data(kind: Kind, op: int) -> None:
    """Flushes and discards go through without a page being touched."""
    grants = FakeGrants()
    pages = kind(grants, FRONTEND)
    jobs = begin(pages, [request(op)])
    assert (jobs[0].status, jobs[0].buffers) == (OKAY, [])
    pages.finish(jobs)
    assert not grants.map_calls
    assert not grants.copy_calls


@BOTH
def test_descriptors_are_copied_once(kind: Kind) -> None:
    """As many descriptors as the request claims, from the pages that it names; a request that names a page which cannot
    be copied gets none, and no other is affected (T31).
    """
    grants = FakeGrants([1, 2, 3])
    grants.pages[1][:] = bytes(range(256)) * 16
    pages = kind(grants, FRONTEND)
    asked = [
        Request(INDIRECT, 1, 0, 3, (1,), (), (), READ),
        Request(INDIRECT, 2, 0, 20, (99,), (), (), READ),
        Request(INDIRECT, 3, 0, 514, (1, 2), (), (), WRITE),
    ]
    first, missing, long = pages.fetch(asked)
    assert first == bytes(range(24))
    assert missing is None
    assert long == bytes(range(256)) * 16 + b"\x02" * 16
    grants.pages[1][:] = bytes(PAGE_SIZE)
    assert first == bytes(range(24))
    pages.close()
    assert grants.mapped == set()


# -- kept mapped -------------------------------------------------------------------------------------------------------


def test_a_page_is_mapped_once() -> None:
    """The same reference again, in the same request, batch or a later one, costs no second mapping."""
    grants = FakeGrants([1, 2])
    pages = PersistentPages(grants, FRONTEND)
    for _ in range(3):
        pages.finish(begin(pages, [request(WRITE, 1, 1), request(READ, 2, 1)]))
    assert grants.map_calls == [1, 2]
    assert len(pages.cache.mapped) == 2


def test_a_reference_that_failed_is_tried_again() -> None:
    """A page that could not be mapped may be granted by the next time."""
    grants = FakeGrants()
    pages = PersistentPages(grants, FRONTEND)
    jobs = begin(pages, [request(READ, 5)])
    pages.finish(jobs)
    grants.pages[5] = bytearray(PAGE_SIZE)
    again = begin(pages, [request(READ, 5)])
    assert statuses(jobs + again) == [ERROR, OKAY]
    pages.finish(again)


def test_a_request_that_failed_has_no_buffers() -> None:
    """The pages that it did get are not used."""
    pages = PersistentPages(FakeGrants([1]), FRONTEND)
    [job] = begin(pages, [request(WRITE, 1, 99)])
    assert job.buffers == []
    pages.finish([job])


def test_full_once_over_the_limit() -> None:
    """`full` is True above the limit, not at it, until all jobs are finished."""
    pages = PersistentPages(FakeGrants(range(1, 5)), FRONTEND, limit=2)
    first = begin(pages, [request(READ, 1, 2)])
    assert not pages.full
    second = begin(pages, [request(READ, 3)])
    assert pages.full
    pages.finish(first)
    assert pages.full
    pages.finish(second)
    assert not pages.full


def test_nothing_in_use_is_unmapped() -> None:
    """Over the limit, pages of jobs under way stay mapped; the surplus goes once the last one is finished."""
    grants = FakeGrants(range(1, 5))
    pages = PersistentPages(grants, FRONTEND, limit=1)
    first, second = begin(pages, [request(READ, 1, 2)]), begin(pages, [request(READ, 3)])
    pages.finish(second)
    assert grants.mapped == {1, 2, 3}
    fill(first[0], b"r")
    pages.finish(first)
    assert grants.pages[1] == b"r" * PAGE_SIZE
    assert len(grants.mapped) == len(pages.cache.mapped) == 1


def test_the_least_recently_used_goes_first() -> None:
    """A page that was used again survives one that was not, whichever was mapped first."""
    grants = FakeGrants(range(1, 5))
    pages = PersistentPages(grants, FRONTEND, limit=3)
    for gref in (1, 2, 3, 1, 4):
        pages.finish(begin(pages, [request(READ, gref)]))
    assert grants.mapped == {1, 3, 4}


def test_a_page_that_was_dropped_is_mapped_again() -> None:
    """A reference that the frontend still uses comes back."""
    grants = FakeGrants([1, 2])
    pages = PersistentPages(grants, FRONTEND, limit=1)
    for gref in (1, 2, 1):
        jobs = begin(pages, [request(WRITE, gref)])
        assert bytes(jobs[0].buffers[0][:1]) == bytes([gref])
        pages.finish(jobs)
    assert grants.map_calls == [1, 2, 1]


def test_as_many_are_kept_as_linux_keeps() -> None:
    """The limit is that of xen-blkback: 1056 pages, three rings of one page full of requests."""
    assert PERSISTENT_MAX == 3 * 32 * SEGMENTS_MAX
    grants = FakeGrants(range(PERSISTENT_MAX + 1))
    pages = PersistentPages(grants, FRONTEND)
    for gref in range(PERSISTENT_MAX + 1):
        pages.finish(begin(pages, [request(READ, gref)]))
    assert grants.mapped == set(range(1, PERSISTENT_MAX + 1))


def test_closing_unmaps_everything() -> None:
    """After `close` nothing of the frontend's is mapped, parts of pages that were in use included."""
    grants = FakeGrants([1, 2])
    pages = PersistentPages(grants, FRONTEND)
    pages.finish(begin(pages, [request(WRITE, 1, 2, first=3, last=4)]))
    assert grants.mapped == {1, 2}
    pages.close()
    assert grants.mapped == set()


# -- copied ------------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_copy() -> None:
    """All segments of all writes of a batch go in one call; reads wait for `finish`, and go in one call, too."""
    grants = FakeGrants([1, 2, 3])
    pages = CopiedPages(grants, FRONTEND)
    jobs = begin(pages, [request(WRITE, 1, 2), request(READ, 3), request(WRITE, 3), request(READ, 1, 2)])
    assert [[(copy.gref, copy.to_grant) for copy in call] for call in grants.copy_calls] == [
        [(1, False), (2, False), (3, False)]
    ]
    grants.copy_calls.clear()
    pages.finish(jobs)
    assert [[(copy.gref, copy.to_grant) for copy in call] for call in grants.copy_calls] == [
        [(3, True), (1, True), (2, True)]
    ]


def test_nothing_is_mapped() -> None:
    """Without persistent grants, no page is mapped at any time (T36)."""
    grants = FakeGrants([1, 2])
    pages = CopiedPages(grants, FRONTEND)
    pages.finish(begin(pages, [request(READ, 1), request(WRITE, 2)]))
    assert not grants.map_calls


def test_read_data_arrives_with_finish_only() -> None:
    """Until then the frontend's page is as it was, whatever is in the buffers."""
    grants = FakeGrants([1])
    pages = CopiedPages(grants, FRONTEND)
    jobs = begin(pages, [request(READ, 1)])
    fill(jobs[0], b"r")
    assert grants.pages[1] == b"\x01" * PAGE_SIZE
    pages.finish(jobs)
    assert grants.pages[1] == b"r" * PAGE_SIZE


def test_write_data_is_taken_once() -> None:
    """A frontend that changes its page after `begin` changes nothing any more."""
    grants = FakeGrants([1])
    pages = CopiedPages(grants, FRONTEND)
    [job] = begin(pages, [request(WRITE, 1)])
    grants.pages[1][:] = b"!" * PAGE_SIZE
    assert bytes(job.buffers[0]) == b"\x01" * PAGE_SIZE


def test_a_read_whose_page_is_gone_fails_alone() -> None:
    """The status of each copy is checked: only the job of the failed segment gets ERROR."""
    grants = FakeGrants([1, 2, 3])
    pages = CopiedPages(grants, FRONTEND)
    jobs = begin(pages, [request(READ, 1), request(READ, 2, 3), request(READ, 3)])
    for job in jobs:
        fill(job, b"r")
    del grants.pages[2]
    pages.finish(jobs)
    assert statuses(jobs) == [OKAY, ERROR, OKAY]
    assert grants.pages[1] == grants.pages[3] == b"r" * PAGE_SIZE


def test_a_read_that_failed_delivers_nothing() -> None:
    """What is in its buffers, perhaps another request's data, stays here."""
    grants = FakeGrants([1])
    pages = CopiedPages(grants, FRONTEND)
    [job] = begin(pages, [request(READ, 1)])
    fill(job, b"r")
    job.status = ERROR
    pages.finish([job])
    assert grants.pages[1] == b"\x01" * PAGE_SIZE


def test_a_batch_of_copies_that_is_refused() -> None:
    """When the hypervisor refuses the whole batch, each of its requests has failed."""
    grants = FakeGrants([1, 2])
    pages = CopiedPages(grants, FRONTEND)
    grants.copies_fail = True
    jobs = begin(pages, [request(WRITE, 1), request(FLUSH_DISKCACHE), request(WRITE, 2)])
    assert statuses(jobs) == [ERROR, OKAY, ERROR]
    pages.finish(jobs)


def test_requests_under_way_share_no_buffer() -> None:
    """Two jobs at once have memory of their own; what one has given back serves the next."""
    grants = FakeGrants([1, 2])
    pages = CopiedPages(grants, FRONTEND)
    first, second = begin(pages, [request(READ, *[1] * SEGMENTS_MAX)]), begin(pages, [request(READ, 2)])
    fill(first[0], b"a")
    fill(second[0], b"b")
    assert b"".join(first[0].buffers) == b"a" * PAGE_SIZE * SEGMENTS_MAX
    used = first[0].buffers[0].obj
    pages.finish(first)
    third = begin(pages, [request(READ, 1)])
    assert third[0].buffers[0].obj is used
    fill(third[0], b"c")
    assert bytes(second[0].buffers[0]) == b"b" * PAGE_SIZE

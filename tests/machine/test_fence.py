"""Two processes on shared memory: the fence is needed even on x86, it is enough, and indices do not tear.

Each process stores its own index, then loads the other's. In whatever order the two run, one of them at least must find
the other's new index; only if a load overtakes the store before it can both find the old one. For a ring that is a
lost wake-up: both ends sleep.

This file is also the program that the processes run.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from xenbusd.ids import PAGE_SIZE
from xenbusd.ring import barrier, shared
from xenbusd.ring.layout import U32
from xenbusd.ring.shared import BackRing, FrontRing

ROUNDS = 300_000
"""Rounds of one run; about 0.3 s where both processes have a processor."""

RUNS_MAX = 8
"""Runs without a fence before we say that this machine shows no reordering."""

OFFSETS = 16
"""Lengths of the pause, in turns of an empty loop, by which the backend waits for its frontend to be at its load."""

LINE = 16
"""u32 words of a cache line: what the two ends share lies in lines of its own."""

SLOT = 112
DEADLINE_S = 120.0


# -- what the processes do -----------------------------------------------------------------------------------------


def no_fence() -> None:
    """What a ring would have without one."""


def find_fence(kind: str) -> Callable[[], object]:
    """No fence, the one that xenbusd uses here, or the one it uses on x86 without libatomic."""
    if kind == "none":
        return no_fence
    if kind == "fence":
        return barrier.fence
    with patch.object(ctypes, "PyDLL", side_effect=OSError):
        return barrier._find_fence()


def meet(words: memoryview, end: int, number: int) -> None:
    """Wait until the other process is in the same round."""
    words[(2 + end) * LINE] = number
    spins = 0
    while words[(3 - end) * LINE] < number:
        spins += 1
        if spins > 1000:
            os.sched_yield()  # it waits for a processor, perhaps for ours


def litmus(words: memoryview, missed: memoryview, end: int, fence: Callable[[], object]) -> None:
    """Store our index, load the other's; note each round in which we did not find its new one."""
    own, other = end * LINE, (1 - end) * LINE
    for number in range(1, len(missed)):
        meet(words, end, number)
        words[own] = number
        fence()
        if words[other] < number:
            missed[number] = 1


def ring(pages: memoryview, words: memoryview, missed: memoryview, end: int, fence: Callable[[], object]) -> None:
    """Let a real frontend publish while its backend goes to sleep; note a publish that does not notify, and a rest that
    found nothing. Both in one round are a lost wake-up."""
    vars(shared)["fence"] = fence
    front, back = FrontRing(pages, SLOT), BackRing(pages, SLOT)
    for number in range(1, len(missed)):
        meet(words, end, 3 * number)
        if end:
            for _ in range(number % OFFSETS):
                pass
            missed[number] = back.rest()
        else:
            front.put(bytes(SLOT))
            missed[number] = not front.publish()
        meet(words, end, 3 * number + 1)
        if end:
            back.take()
            back.put(bytes(16))
            back.publish()
        else:
            front.take()
        meet(words, end, 3 * number + 2)
        back.indices()  # both have the header in their caches now; what is in no cache no load can find old


def write_alternately(words: memoryview, pack: Callable[[int], object]) -> None:
    """Write all zeros and all ones by turns until the other process is done."""
    meet(words, 0, 1)
    while not words[LINE]:
        pack(0)
        pack(U32)


def count_torn(words: memoryview, torn: memoryview) -> None:
    """Read while the other process writes; note each value that it never wrote."""
    meet(words, 1, 1)
    seen = {0: 0, U32: 0}
    number = 0
    while number < len(torn) or min(seen.values()) < 100:  # a writer that got no processor yet proves nothing
        value = words[0]
        if value in seen:
            seen[value] += 1
        else:
            torn[number % len(torn)] = 1
        number += 1
    words[LINE] = 1


def main(what: str, path: str, end: int, kind: str) -> None:
    """Be one of the two processes."""
    with open(path, "r+b") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0))
    words, pages = memory[:PAGE_SIZE].cast("I"), memory[PAGE_SIZE : 2 * PAGE_SIZE]
    notes = memory[2 * PAGE_SIZE + end * ROUNDS :][:ROUNDS]
    if what == "litmus":
        litmus(words, notes, end, find_fence(kind))
    elif what == "ring":
        ring(pages, words, notes, end, find_fence(kind))
    elif end:
        count_torn(words, notes)
    elif kind == "cast":
        write_alternately(words, lambda value: words.__setitem__(0, value))
    else:
        write_alternately(words, lambda value: struct.pack_into(kind, memory, 0, value))


# -- the tests -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _two_processors() -> None:
    """Nothing can be seen where the two processes never run at the same time."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors: on one, no two processes run at the same time")


def run(directory: Path, what: str, kind: str) -> tuple[bytes, bytes]:
    """Run both processes to their ends, and return what each has noted: a byte for each round."""
    path = directory / "memory"
    with path.open("wb") as file:
        file.truncate(2 * PAGE_SIZE + 2 * ROUNDS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, what, str(path)]
    processes = [
        subprocess.Popen([*command, str(end), kind], env=environment, stderr=subprocess.PIPE, text=True)
        for end in (0, 1)
    ]
    try:
        for process in processes:
            _, said = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    noted = path.read_bytes()[2 * PAGE_SIZE :]
    path.unlink()
    return noted[:ROUNDS], noted[ROUNDS:]


def in_both(notes: tuple[bytes, bytes]) -> int:
    """Rounds that both ends have noted."""
    one, other = (int.from_bytes(noted, "little") for noted in notes)
    return (one & other).bit_count()


def rounds_until_seen(directory: Path, what: str) -> tuple[int, int]:
    """Run without a fence until the loss is seen, but not for ever. Return how often it was, and in how many rounds."""
    lost = runs = 0
    while not lost and runs < RUNS_MAX:
        lost += in_both(run(directory, what, "none"))
        runs += 1
    return lost, runs


@pytest.mark.parametrize(("what", "kind"), [("litmus", "fence"), ("litmus", "lock"), ("ring", "fence")])
def test_the_fence_is_needed_and_is_enough(tmp_path: Path, what: str, kind: str) -> None:
    """C.5: without a fence both ends are seen to find the old index; with one, in as many rounds, never."""
    if kind == "lock" and not barrier.ORDERED:
        pytest.skip("a lock is a full fence on x86 only, and xenbusd uses it nowhere else")
    lost, runs = rounds_until_seen(tmp_path, what)
    fenced = sum(in_both(run(tmp_path, what, kind)) for _ in range(runs))
    print(f"{what}: {lost} lost without a fence, {fenced} with one, in {runs * ROUNDS} rounds each")
    assert fenced == 0
    if not lost:
        pytest.skip(f"this machine showed no reordering in {runs * ROUNDS} rounds: the fence could not be shown needed")


def test_an_index_is_read_whole(tmp_path: Path) -> None:
    """C.5: an index written through cast("I") is never read half old and half new."""
    assert sum(run(tmp_path, "tearing", "cast")[1]) == 0


def test_a_bytewise_index_would_tear(tmp_path: Path) -> None:
    """C.5: struct with a foreign byte order writes byte by byte; so the test above could have seen it."""
    for runs in range(1, RUNS_MAX + 1):
        torn = sum(run(tmp_path, "tearing", ">I")[1])
        if torn:
            print(f"{torn} torn in {runs * ROUNDS} reads")
            return
    pytest.skip(f"this machine showed no torn read in {RUNS_MAX * ROUNDS} reads")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

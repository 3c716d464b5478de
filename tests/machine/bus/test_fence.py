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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from xenbusd.ids import PAGE_SIZE
from xenbusd.ring import barrier
from xenbusd.ring.layout import U32

ROUNDS = 300_000
"""Rounds of one run; about 0.3 s where both processes have a processor."""

RUN_S = 1.5
"""The longest that one run goes on where they have not."""

RUNS_MAX = 4
"""Runs without a fence before we say that this machine shows no reordering, and with one before it is too busy."""

LINE = 16
"""u32 words of a cache line: what the two ends share lies in lines of its own."""

LAST, DONE = 4 * LINE, 5 * LINE
"""Where the processes agree on their last round, and note how many there were."""

DEADLINE_S = 60.0


# -- what the processes do -----------------------------------------------------------------------------------------


def no_fence() -> None:
    """Do nothing, as a ring without a fence would."""


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


def rounds(words: memoryview, end: int, most: int) -> Iterator[int]:
    """Number the rounds, until there are `most` or the time is up; both processes stop at the same one."""
    deadline = time.monotonic() + RUN_S
    for number in range(1, most):
        if words[LAST] == number:
            return
        if not end and number % 256 == 0 and time.monotonic() > deadline:
            words[LAST] = number + 1  # the other process is in no later round than ours
            barrier.fence()
        words[DONE] = number
        yield number


def litmus(words: memoryview, missed: memoryview, end: int, fence: Callable[[], object]) -> None:
    """Store our index, load the other's; note each round in which we did not find its new one."""
    own, other = end * LINE, (1 - end) * LINE
    for number in rounds(words, end, len(missed)):
        meet(words, end, number)
        words[own] = number
        fence()
        if words[other] < number:
            missed[number] = 1


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
    """Be one of the two processes, each on a processor of its own: on a shared one, nothing could be observed."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[-end]})
    with open(path, "r+b") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0))
    words, notes = memory[:PAGE_SIZE].cast("I"), memory[PAGE_SIZE + end * ROUNDS :][:ROUNDS]
    if what == "litmus":
        litmus(words, notes, end, find_fence(kind))
    elif end:
        count_torn(words, notes)
    elif kind == "cast":
        write_alternately(words, lambda value: words.__setitem__(0, value))
    else:
        write_alternately(words, lambda value: struct.pack_into(kind, memory, 0, value))


# -- the tests -----------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.alone
"""A busy processor hides the reordering that these tests are to see."""


@pytest.fixture(autouse=True)
def _two_processors() -> None:
    """Skip where the two processes cannot run at the same time: nothing could be observed."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors: on one, no two processes run at the same time")


def run(directory: Path, what: str, kind: str) -> tuple[int, bytes, bytes]:
    """Run both processes to their ends. Return the rounds, and what each process has noted: a byte for each round."""
    path = directory / "memory"
    with path.open("wb") as file:
        file.truncate(PAGE_SIZE + 2 * ROUNDS)
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
    memory = path.read_bytes()
    path.unlink()
    noted = memory[PAGE_SIZE:]
    return int.from_bytes(memory[4 * DONE :][:4], sys.byteorder), noted[:ROUNDS], noted[ROUNDS:]


def count_lost(directory: Path, kind: str, enough: Callable[[int, int], bool]) -> tuple[int, int]:
    """Run until it is enough of losses and rounds, but not for ever. Return both."""
    lost = rounds = runs = 0
    while not enough(lost, rounds) and runs < RUNS_MAX:
        done, *notes = run(directory, "litmus", kind)
        one, other = (int.from_bytes(noted, "little") for noted in notes)
        lost += (one & other).bit_count()
        rounds += done
        runs += 1
    return lost, rounds


@pytest.mark.parametrize("kind", ["fence", "lock"])
def test_the_fence_is_needed_and_is_enough(tmp_path: Path, kind: str) -> None:
    """C.5: without a fence both ends are seen to find the old index; with one, in as many rounds, never."""
    if kind == "lock" and not barrier.ORDERED:
        pytest.skip("a lock is a full fence on x86 only, and xenbusd uses it nowhere else")
    lost, unfenced = count_lost(tmp_path, "none", lambda lost, _: lost > 0)
    lost_fenced, fenced = count_lost(tmp_path, kind, lambda _, rounds: rounds >= unfenced)
    print(f"{lost} lost in {unfenced} rounds without a fence, {lost_fenced} in {fenced} with one")
    assert lost_fenced == 0
    if not lost:
        pytest.skip(f"this machine showed no reordering in {unfenced} rounds: the fence could not be shown needed")
    if fenced < unfenced:
        pytest.skip(f"this machine is too busy: {unfenced} rounds without a fence, and only {fenced} with one")


def test_an_index_is_read_whole(tmp_path: Path) -> None:
    """C.5: an index written through cast("I") is never read half old and half new."""
    _, _, torn = run(tmp_path, "tearing", "cast")
    assert sum(torn) == 0


def test_a_bytewise_index_would_tear(tmp_path: Path) -> None:
    """C.5: struct with a foreign byte order writes byte by byte; so the test above could have seen it."""
    for runs in range(1, RUNS_MAX + 1):
        _, _, torn = run(tmp_path, "tearing", ">I")
        if any(torn):
            print(f"{sum(torn)} torn in {runs * ROUNDS} reads")
            return
    pytest.skip(f"this machine showed no torn read in {RUNS_MAX * ROUNDS} reads")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

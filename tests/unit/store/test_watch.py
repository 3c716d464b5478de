"""A watch's hints: cut, coalesced, bounded."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from xenbusd.errors import LocalProtocolError, StoreLost
from xenbusd.store.watch import HINTS_MAX, Watch


def make(path: str = "/b", depth: int = 0, wakes: list[int] | None = None) -> Watch:
    """A watch that no client has made."""

    async def unwatch(watch: Watch) -> None:
        del watch

    return Watch(path, depth=depth, wake=None if wakes is None else lambda: wakes.append(1), unwatch=unwatch)


@pytest.mark.parametrize(
    ("path", "depth", "event", "hint"),
    [
        ("/b", 0, "/b", "/b"),
        ("/b", 0, "/b/vbd/3/51712/state", "/b"),
        ("/b", 2, "/b/vbd/3/51712/state", "/b/vbd/3"),
        ("/b", 2, "/b/vbd", "/b/vbd"),
        ("/b", 2, "/b", "/b"),
        ("/b", 1, "/bother/x", "/b"),
        ("/b", 3, "/", "/b"),
        ("/", 1, "/local/domain/3", "/local"),
        ("/", 2, "/", "/"),
        ("device/vbd", 1, "device/vbd/51712/state", "device/vbd/51712"),
        ("@releaseDomain", 0, "@releaseDomain", "@releaseDomain"),
        ("@releaseDomain", 1, "@releaseDomain/7", "@releaseDomain/7"),
    ],
)
async def test_a_hint_is_the_path_cut_to_the_depth(path: str, depth: int, event: str, hint: str) -> None:
    """What is not below the watched path, as where an ancestor was removed, hints at the watched path itself (T5)."""
    watch = make(path, depth)
    watch.hint(event)
    assert watch.take() == {hint}
    assert watch.take() == set()


async def test_hints_coalesce_and_taking_clears_them() -> None:
    """A set, not a queue (T2)."""
    watch = make(depth=1)
    for event in ("/b/1/state", "/b/1/state", "/b/2", "/b/1/other"):
        watch.hint(event)
    assert watch.take() == {"/b/1", "/b/2"}
    watch.hint("/b/2/state")
    assert watch.take() == {"/b/2"}


async def test_the_watched_path_stands_for_all_below_it() -> None:
    """Nothing finer is kept beside it."""
    watch = make(depth=1)
    for event in ("/b/1", "/b", "/b/2"):
        watch.hint(event)
    assert watch.take() == {"/b"}


async def test_more_hints_than_the_bound_become_one() -> None:
    """A thousand and twenty-four are kept, one more makes it a single hint at everything."""
    watch = make(depth=1)
    for number in range(HINTS_MAX):
        watch.hint(f"/b/{number}")
    assert len(watch.take()) == HINTS_MAX
    for number in range(HINTS_MAX + 1):
        watch.hint(f"/b/{number}")
    assert watch.take() == {"/b"}


async def test_a_storm_keeps_memory_flat() -> None:
    """A hundred thousand events of different paths leave no more than the bound (T12, XSA-349)."""
    watch = make(depth=3)
    tracemalloc.start()
    try:
        for number in range(100_000):
            watch.hint(f"/b/{number % 300}/{number}/state")
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 1_000_000
    assert watch.take() == {"/b"}


async def test_wake_is_called_for_the_first_hint_only() -> None:
    """Again after the hints were taken; in a loop turn of its own, so that its errors are not the store's."""
    wakes: list[int] = []
    watch = make(depth=1, wakes=wakes)
    watch.hint("/b/1")
    watch.hint("/b/2")
    assert wakes == []
    await asyncio.sleep(0)
    assert wakes == [1]
    watch.take()
    watch.hint("/b/1")
    await asyncio.sleep(0)
    assert wakes == [1, 1]


async def test_wait_returns_hints_that_came_before_and_after() -> None:
    """It does not return without one."""
    watch = make()
    watch.hint("/b")
    assert await watch.wait() == {"/b"}
    waiting = asyncio.create_task(watch.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    watch.hint("/b/x")
    assert await waiting == {"/b"}


async def test_of_two_that_wait_one_gets_the_hints_and_the_other_waits_on() -> None:
    """No hint is given out twice."""
    watch = make()
    both = [asyncio.create_task(watch.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    watch.hint("/b")
    done, waiting = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == len(waiting) == 1
    watch.hint("/b")
    assert await waiting.pop() == {"/b"}


async def test_a_watch_that_has_failed_gives_its_last_hints_then_the_reason() -> None:
    """A waiting task gets the reason, and so does one that is woken; the first reason stays."""
    wakes: list[int] = []
    watch = make(wakes=wakes)
    watch.hint("/b")
    watch.fail(StoreLost("closed"))
    watch.fail(StoreLost("again"))
    await asyncio.sleep(0)
    assert wakes == [1, 1]
    assert await watch.wait() == {"/b"}
    with pytest.raises(StoreLost, match="closed"):
        await watch.wait()
    with pytest.raises(StoreLost, match="closed"):
        watch.take()


async def test_a_watch_given_back_hints_no_more() -> None:
    """A task that still waits gets the reason; giving it back twice is as good as once."""
    wakes: list[int] = []
    watch = make(wakes=wakes)
    waiting = asyncio.create_task(watch.wait())
    await asyncio.sleep(0)
    await watch.unwatch()
    await watch.unwatch()
    with pytest.raises(LocalProtocolError, match="given back"):
        await waiting
    assert wakes == []

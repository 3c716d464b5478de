"""The client and the embedded store, each in a process of its own."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from xenbusd.errors import NodeExists, NodeNotFound, StoreLost, TransactionConflict
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import Endpoint, unix_endpoint
from xenbusd.store.transaction import Transaction
from xenbusd.store.wire import Op

DEADLINE_S = 60
"""So that a store which does not answer fails its test, instead of stopping them all."""

ROOT = Path(__file__).parents[3]


class StoreProcess:
    """`xenbusd store`, to be killed and started again."""

    def __init__(self, path: Path) -> None:
        self.endpoint: Endpoint = unix_endpoint(str(path))
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when its socket answers."""
        command = [sys.executable, "-m", "xenbusd", "store", "--socket", str(self._path)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self._process.stdout is not None
        said = b""
        while True:
            line = self._process.stdout.readline()
            assert line, f"the store ended: {said.decode()}"
            said += line
            with suppress(StoreLost):
                opened = self.endpoint.open()
                assert not isinstance(opened, int)
                opened.close()
                return

    def stop(self) -> None:
        """Stop it from answering, as a debugger would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it as the kernel's out-of-memory killer would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    """A store that has been started."""
    process = StoreProcess(tmp_path / "socket")
    try:
        process.start()
        yield process
    finally:
        process.kill()


async def test_every_operation_does_what_it_says(store: StoreProcess) -> None:
    """As seen by the store, not by a script."""
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        await client.write("/a/b", "välue")
        assert (await client.read("/a/b")).decode() == "välue"
        await client.write("/a/raw", bytes(range(256)))
        assert await client.read("/a/raw") == bytes(range(256))
        await client.mkdir("/a/c")
        assert await client.read("/a/c") == b""
        assert sorted(await client.directory("/a")) == ["b", "c", "raw"]
        assert await client.directory("/a/c") == []
        await client.set_perms("/a/b", ["n3", "r0", "b7"])
        assert await client.get_perms("/a/b") == ["n3", "r0", "b7"]
        await client.rm("/a/b")
        with pytest.raises(NodeNotFound, match="READ /a/b"):
            await client.read("/a/b")
        with pytest.raises(NodeNotFound):
            await client.directory("/nowhere")
        await client.rm("/a/b")
        with pytest.raises(NodeNotFound, match="RM /nowhere/at/all"):
            await client.rm("/nowhere/at/all")
        assert await client.get_domain_path(3) == "/local/domain/3"
        assert await client.is_domain_introduced(3) is False
        await client.introduce(3, 4096, 1)
        assert await client.is_domain_introduced(3) is True
        await client.release(3)
        assert await client.is_domain_introduced(3) is False
        assert client.strays == 0


async def test_ten_thousand_requests_at_once_are_all_answered(store: StoreProcess) -> None:
    """Each with its own answer."""
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        writes = [client.write(f"/n/{number}", str(number)) for number in range(1000)]
        reads = [client.read(f"/n/{number % 1000}") for number in range(10_000)]
        assert [await write for write in writes] == [None] * 1000
        assert [int(await read) for read in reads] == [number % 1000 for number in range(10_000)]


@pytest.mark.parametrize("size", [3000, 4094, 4095, 4096, 4097, 5000, 40_000])
async def test_listings_of_any_size_come_whole(store: StoreProcess, size: int) -> None:
    """Also around the 4096 bytes that one packet carries; within a transaction too."""
    lengths = [20] * (size // 20 - 1) + [20 + size % 20]
    children = [f"{number:0{length - 1}}" for number, length in enumerate(lengths)]
    assert sum(len(child) + 1 for child in children) == size
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        await asyncio.gather(*(client.mkdir(f"/big/{child}") for child in children))
        assert sorted(await client.directory("/big")) == sorted(children)
        in_transaction = await client.transaction(lambda tx: tx.directory("/big"))
        assert sorted(in_transaction) == sorted(children)


async def test_a_watch_fires_at_once_and_for_each_change_below_it(store: StoreProcess) -> None:
    """The hint is cut to the watch's depth; a special watch fires, too; after unwatch nothing fires."""
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        watch = await client.watch("/b", depth=2)
        assert await watch.wait() == {"/b"}
        await client.write("/b/vbd/3/51712/state", "1")
        assert await watch.wait() == {"/b/vbd/3"}
        await client.rm("/b/vbd")
        assert await watch.wait() == {"/b/vbd"}
        special = await client.watch("@introduceDomain")
        assert await special.wait() == {"@introduceDomain"}
        await client.introduce(5, 4096, 1)
        assert await special.wait() == {"@introduceDomain"}
        again = await client.watch("/b")
        assert await again.wait() == {"/b"}
        await watch.unwatch()
        await client.write("/b/x", "1")
        assert await again.wait() == {"/b"}
        assert client.strays == 0


async def test_the_same_path_and_token_twice_is_refused_by_the_store(store: StoreProcess) -> None:
    """T3: that is why each watch has its own token."""
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        watch = await client.watch("/b")
        with pytest.raises(NodeExists, match="WATCH /b"):
            await client.ask(Op.WATCH, "/b", f"/b\0{watch.token}\0".encode())


async def test_transactions_are_seen_whole_or_not_at_all(store: StoreProcess) -> None:
    """Not before the commit, and not after an abort; watches fire at the commit (T6)."""
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        watch = await client.watch("/t")
        await watch.wait()
        await client.write("/other", "1")

        async def body(tx: Transaction) -> None:
            await tx.write("/t/a", "1")
            await tx.write("/t/b", "2")
            assert await tx.read("/t/a") == b"1"
            with pytest.raises(NodeNotFound):
                await client.read("/t/a")
            assert watch.take() == set()

        await client.transaction(body)
        assert await watch.wait() == {"/t"}
        assert await asyncio.gather(client.read("/t/a"), client.read("/t/b")) == [b"1", b"2"]

        async def failing(tx: Transaction) -> None:
            await tx.write("/t/a", "never")
            raise KeyError("the body's own")

        with pytest.raises(KeyError):
            await client.transaction(failing)
        assert await client.read("/t/a") == b"1"


async def test_two_clients_that_count_lose_no_count(store: StoreProcess) -> None:
    """Every conflict is found, and the body that lost is done again (T6)."""
    rounds, runs = 50, 0

    async def count(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        value = int(await tx.read("/counter"))
        await tx.write("/counter", str(value + 1))

    async def many(client: StoreClient) -> None:
        for _ in range(rounds):
            await client.transaction(count)

    async with (
        asyncio.timeout(DEADLINE_S),
        StoreClient(store.endpoint) as one,
        StoreClient(store.endpoint) as two,
    ):
        await one.write("/counter", "0")
        await asyncio.gather(many(one), many(two))
        assert int(await one.read("/counter")) == 2 * rounds
        assert runs > 2 * rounds


async def test_a_transaction_that_somebody_always_disturbs_gives_up(store: StoreProcess) -> None:
    """With the conflict as its error, and its change not made."""
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        await client.write("/a", "0")

        async def body(tx: Transaction) -> None:
            await tx.read("/a")
            await client.write("/a", "disturbed")
            await tx.write("/a", "never")

        with pytest.raises(TransactionConflict):
            await client.transaction(body)
        assert await client.read("/a") == b"disturbed"


async def test_a_store_that_is_killed_and_started_again_is_hardly_noticed(store: StoreProcess) -> None:
    """Watches come back and fire, what was pending is answered, a transaction under way is done again."""
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        lost, back = asyncio.Event(), asyncio.Event()
        client.on_lost = lambda _: lost.set()
        client.on_back = back.set
        watches = [await client.watch(f"/w/{number}", depth=1) for number in range(100)]
        for watch in watches:
            await watch.wait()
        await client.write("/kept", "no: the embedded store keeps nothing")
        inside, runs = asyncio.Event(), 0

        async def body(tx: Transaction) -> int:
            nonlocal runs
            runs += 1
            await tx.write("/from/transaction", "1")
            inside.set()
            if runs == 1:
                await lost.wait()
            await tx.write("/from/transaction/too", "2")
            return runs

        transaction = asyncio.create_task(client.transaction(body))
        await inside.wait()
        store.stop()
        pending = [client.write(f"/pending/{number}", str(number)) for number in range(1000)]
        await asyncio.sleep(0)
        store.kill()
        await lost.wait()
        while_away = client.write("/while/away", "1")
        asked = asyncio.create_task(client.watch("/new"))
        store.start()
        await back.wait()
        assert [await write for write in pending] == [None] * 1000
        await while_away
        assert await transaction == 2
        for watch in watches:
            assert await watch.wait() == {watch.path}
        await client.write("/w/7/x", "1")
        assert await watches[7].wait() == {"/w/7/x"}
        assert await (await asked).wait() == {"/new"}
        with pytest.raises(NodeNotFound):
            await client.read("/kept")
        assert await client.read("/from/transaction/too") == b"2"
        assert len(await client.directory("/pending")) == 1000
        assert (client.connected, client.reconnects) == (True, 1)


async def test_a_store_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    """A command must not wait for a store that is not there."""
    with pytest.raises(StoreLost, match="is xenstored running"):
        await StoreClient(unix_endpoint(str(tmp_path / "nothing"))).open()


async def test_the_largest_value_that_fits_is_stored_whole(store: StoreProcess) -> None:
    """Path, NUL and value are 4096 bytes together; the store refuses nothing that the client lets through."""
    async with asyncio.timeout(DEADLINE_S), StoreClient(store.endpoint) as client:
        value = b"v" * (4096 - len("/big\0"))
        await client.write("/big", value)
        assert await client.read("/big") == value
        with pytest.raises(ValueError, match="at most 4096 bytes"):
            client.write("/big", value + b"v")
        with pytest.raises(NodeNotFound):
            await client.read("/" + "a" * 3071)

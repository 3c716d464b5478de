"""The embedded store with clients of other projects: Xen's tools, Xen's own test, and pyxs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyxs.client import Client
from pyxs.exceptions import PyXSError

import xenbusd

TEST_XENSTORE = next(
    (str(path) for path in sorted(Path("/usr/lib").glob("xen-*/bin/test-xenstore"))),
    "/usr/lib/xen-4.17/bin/test-xenstore",
)
DEADLINE_S = 60
"""So that a peer which waits for ever fails its test, instead of stopping them all."""

SERVE = """
import asyncio, sys
from xenbusd.store.server import StoreServer

async def main():
    server = StoreServer()
    await server.listen(sys.argv[1])
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.close()

if sys.argv[2] == "uvloop":
    import uvloop
    loop = uvloop.new_event_loop()
else:
    loop = asyncio.new_event_loop()
with asyncio.Runner(loop_factory=lambda: loop) as runner:
    runner.run(main())
"""


def need(tool: str, package: str) -> str:
    """Find a tool, or skip the test and name the Debian package."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is missing: apt-get install {package}")
    return found


@pytest.fixture(params=["asyncio", "uvloop"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store in a process of its own; its socket."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed: pip install uvloop")
    path = str(tmp_path / "socket")
    environment = {**os.environ, "PYTHONPATH": str(Path(xenbusd.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c", SERVE, path, request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
        yield path
        _, errors = process.communicate("", timeout=DEADLINE_S)
        assert (process.returncode, errors) == (0, ""), "the store ended in order and had nothing to complain of"


class Tools:
    """xenstore-utils, pointed at one store."""

    def __init__(self, path: str, variable: str = "XENSTORED_PATH") -> None:
        value = path if variable == "XENSTORED_PATH" else str(Path(path).parent)
        others = {name: text for name, text in os.environ.items() if not name.startswith("XENSTORED_")}
        self.environment = {**others, variable: value}

    def run(self, tool: str, *args: str, status: int = 0) -> str:
        """Run a tool to its end; return what it printed."""
        done = subprocess.run(
            [need(tool, "xenstore-utils"), *args],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == status, f"{tool} {args}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.mark.parametrize("variable", ["XENSTORED_PATH", "XENSTORED_RUNDIR"])
def test_write_read_list_exists_rm(store: str, variable: str) -> None:
    """Xen's tools write, read and remove; both ways of naming the socket work."""
    tools = Tools(store, variable)
    assert tools.run("xenstore-write", "/vm/a/name", "one", "/vm/a/uuid", "two words", "rel", "3") == ""
    assert tools.run("xenstore-read", "/vm/a/name", "/vm/a/uuid", "/local/domain/0/rel") == "one\ntwo words\n3\n"
    assert tools.run("xenstore-list", "/vm/a") == "name\nuuid\n"
    assert tools.run("xenstore-list", "-p", "/vm") == "/vm/a\n"
    tools.run("xenstore-exists", "/vm/a/name")
    tools.run("xenstore-rm", "/vm/a/name")
    tools.run("xenstore-exists", "/vm/a/name", status=1)
    tools.run("xenstore-read", "/vm/a/name", status=1)
    tools.run("xenstore-rm", "-t", "/vm/a/uuid")
    assert tools.run("xenstore-list", "/") == "tool\nlocal\n", "-t removes the parents that are empty now"


def test_chmod_and_ls(store: str) -> None:
    """Permissions as xenstore-chmod sets them and xenstore-ls shows them."""
    tools = Tools(store)
    tools.run("xenstore-write", "/d/x/y", "v", "/d/z", "w\\x01")
    tools.run("xenstore-chmod", "/d/x", "n3", "r0", "b7")
    tools.run("xenstore-chmod", "-r", "/d/x/y", "r4")
    assert tools.run("xenstore-ls", "-fp", "/d").split("\n") == [
        '/d/x = ""   (n3,r0,b7)',
        '/d/x/y = "v"   (r4)',
        '/d/z = "w\\001"   (n0)',
        "",
    ]
    assert tools.run("xenstore-ls", "/d") == 'x = ""\n y = "v"\nz = "w\\001"\n'
    tools.run("xenstore-chmod", "/absent", "n0", status=1)


@pytest.mark.parametrize("length", [40, 200])
def test_ls_of_a_directory_that_fits_no_packet(store: str, length: int) -> None:
    """400 long names: the tool goes over to DIRECTORY_PART and shows every one (oxenstored hangs up here)."""
    tools = Tools(store)
    names = [f"{number:0{length}}" for number in range(400)]
    tools.run("xenstore-write", *(word for name in names for word in (f"/many/{name}", "")))
    assert tools.run("xenstore-list", "/many").split() == names


def test_watch(store: str) -> None:
    """xenstore-watch prints the first event and then each change, also of a relative watch and of a special one."""
    tools = Tools(store)
    command = [need("xenstore-watch", "xenstore-utils"), "-n", "5", "/w", "rel", "@releaseDomain"]
    with subprocess.Popen(command, env=tools.environment, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        try:
            assert {watcher.stdout.readline() for _ in range(3)} == {"/w\n", "rel\n", "@releaseDomain\n"}
            tools.run("xenstore-write", "/w/x", "1")
            assert watcher.stdout.readline() == "/w/x\n"
            tools.run("xenstore-write", "/beside", "1", "rel/y", "1")
            assert watcher.stdout.readline() == "rel/y\n"
            assert watcher.wait(DEADLINE_S) == 0
        finally:
            watcher.kill()


def test_xen_s_own_test(store: str) -> None:
    """test-xenstore: reads, writes, listings, removals, transactions with and without conflict, 20 rounds of each."""
    tool = need(TEST_XENSTORE, "xen-utils-4.17")
    done = subprocess.run(
        [tool, "-i", "20"],
        env=Tools(store).environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    listed = subprocess.run([tool, "--list-tests"], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert len(listed.stdout.splitlines()) == 12
    assert [line.partition(":")[0].rstrip() for line in done.stdout.splitlines()] == [
        line.partition(":")[0].rstrip() for line in listed.stdout.splitlines()
    ]
    assert Tools(store).run("xenstore-list", "/local/domain/0") == "", "it has cleaned up behind itself"


def test_xen_s_own_test_beside_itself(store: str) -> None:
    """Three of them at once for a second: nobody disturbs the others."""
    tool = need(TEST_XENSTORE, "xen-utils-4.17")
    running = [
        subprocess.Popen(
            [tool, "-r", "1"], env=Tools(store).environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=DEADLINE_S)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs


def test_pyxs_client(store: str) -> None:
    """Each operation that pyxs.Client knows."""
    with Client(unix_socket_path=store) as client:
        client.write(b"/a/b", b"value")
        assert client.read(b"/a/b") == b"value"
        assert client.read(b"/a/none", b"default") == b"default"
        assert client[b"/a/b"] == b"value"
        client.mkdir(b"/a/c")
        assert client.list(b"/a") == [b"b", b"c"]
        assert client.exists(b"/a/c")
        client.delete(b"/a/c")
        assert not client.exists(b"/a/c")
        client.set_perms(b"/a", [b"n3", b"r0"])
        assert client.get_perms(b"/a") == [b"n3", b"r0"]
        assert [path for path, *_ in client.walk(b"/a")] == [b"/a", b"/a/b"]
        assert client.get_domain_path(3) == b"/local/domain/3"
        assert client.is_domain_introduced(0)
        with pytest.raises(PyXSError) as refused:
            client.read(b"/none")
        assert refused.value.args[0] == 2


def test_pyxs_transactions(store: str) -> None:
    """One commits, one is rolled back, one conflicts with a second client."""
    with Client(unix_socket_path=store) as client, Client(unix_socket_path=store) as other:
        client.transaction()
        client.write(b"/t", b"1")
        assert not other.exists(b"/t")
        assert client.commit()
        assert other.read(b"/t") == b"1"
        client.transaction()
        client.write(b"/t", b"2")
        client.rollback()
        assert other.read(b"/t") == b"1"
        client.transaction()
        client.write(b"/t", client.read(b"/t") + b"+")
        other.write(b"/t", b"3")
        assert not client.commit()
        assert other.read(b"/t") == b"3"


def test_pyxs_monitor(store: str) -> None:
    """pyxs's Monitor hears the first event and the changes, and nothing after unwatch."""
    with Client(unix_socket_path=store) as client, client.monitor() as monitor:
        monitor.watch(b"/m", b"token")
        events = monitor.wait(unwatched=True)
        assert next(events) == (b"/m", b"token")
        client.write(b"/m/x", b"1")
        assert next(events) == (b"/m/x", b"token")
        client.delete(b"/m")
        assert next(events) == (b"/m", b"token")
        monitor.unwatch(b"/m", b"token")
        client.write(b"/m", b"1")
        monitor.watch(b"/n", b"other")
        assert next(events) == (b"/n", b"other")

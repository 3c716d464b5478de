"""The TPM pair on a simulated machine: a real swtpm at one end, Debian's tpm2-tools at the other."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import tpm
from tests.doubles.tpm import (
    GET_RANDOM,
    OTHER_UUID,
    RC_FAILURE,
    STARTUP,
    UUID,
    Tools,
    agent,
    ask,
    attach,
    extend,
    pair,
    pcr_read,
    result,
    serve,
)
from xenbusd.bus.state import Side, State
from xenbusd.testing import Machine, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd.testing.processes import machine as machine_of_processes

pytestmark = pytest.mark.skipif(tpm.lacking() is not None, reason=tpm.lacking() or "")


def tools(guest: Process, machine: Machine, name: str = "work") -> Tools:
    """tpm2-tools in the guest."""
    return Tools(Path(guest.services.run_dir) / "vtpm-0.sock", machine.folder / name)


def swtpms(folder: Path) -> list[int]:
    """The swtpm processes that work below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.readlink(entry / "cwd").startswith(str(folder)):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


async def kill_swtpm(machine: Machine) -> None:
    """Kill the swtpm that runs, as the kernel does when memory is short."""
    [pid] = swtpms(machine.folder)
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        loop = asyncio.get_running_loop()
        dead = loop.create_future()
        loop.add_reader(fd, lambda: dead.done() or dead.set_result(None))
        await dead
        loop.remove_reader(fd)
    finally:
        os.close(fd)


# -- what a TPM is for -------------------------------------------------------------------------------------------------


async def test_keys_and_signatures(machine: Machine) -> None:
    """tpm2-tools make a primary key and a key below it, load it, sign and verify; another text does not verify."""
    async with pair(machine) as (_, guest, _):
        run = tools(guest, machine)
        assert re.fullmatch(r"[0-9a-f]{32}", await run("getrandom", "--hex", "16"))
        await run("createprimary", "--key-context", "primary")
        await run("flushcontext", "--transient-object")
        await run("create", "--parent-context", "primary", "--public", "key.pub", "--private", "key.priv")
        await run.flush()
        await run("load", "-C", "primary", "-u", "key.pub", "-r", "key.priv", "-c", "key")
        await run.flush()
        (run.folder / "text").write_text("a text to sign\n")
        (run.folder / "other").write_text("another text\n")
        await run("sign", "-c", "key", "-g", "sha256", "-o", "signature", "text")
        await run.flush()
        await run("verifysignature", "-c", "key", "-g", "sha256", "-m", "text", "-s", "signature")
        await run.flush()
        await run("verifysignature", "-c", "key", "-g", "sha256", "-m", "other", "-s", "signature", fails=True)


async def test_registers_and_memory(machine: Machine) -> None:
    """A PCR is extended and read; an NV index is defined, written and read."""
    async with pair(machine) as (_, guest, _):
        run = tools(guest, machine)
        assert re.search(r"10: 0x0{64}", await run("pcrread", "sha256:10"))
        await run("pcrextend", "10:sha256=" + "11" * 32)
        assert re.search(r"10: 0x(?!0{64})[0-9A-F]{64}", await run("pcrread", "sha256:10"))
        await run("nvdefine", "0x1500016", "--size", "12", "--attributes", "ownerread|ownerwrite")
        (run.folder / "in").write_bytes(b"twelve bytes")
        await run("nvwrite", "0x1500016", "-C", "o", "-i", "in")
        await run("nvread", "0x1500016", "-C", "o", "-o", "out")
        assert (run.folder / "out").read_bytes() == b"twelve bytes"


async def test_a_secret_outlives_detach_and_belongs_to_one_uuid(machine: Machine) -> None:
    """A sealed secret survives detach and attach; the TPM of another uuid cannot unseal it; registers are zero again,
    as after power-on; state and folders are accessible to their owner alone."""
    async with pair(machine) as (back, guest, id):
        run = tools(guest, machine)
        await run("createprimary", "-c", "primary")
        await run.flush()
        (run.folder / "secret").write_text("nobody knows")
        await run("create", "-C", "primary", "-i", "secret", "-u", "seal.pub", "-r", "seal.priv")
        await run("pcrextend", "10:sha256=" + "11" * 32)
        await machine.detach(id)
        await back.until(lambda: not swtpms(machine.folder))

        await attach(machine, OTHER_UUID)
        await machine.connected(id)
        await run("startup", "-c")
        await run("createprimary", "-c", "primary")
        await run.flush()
        await run("load", "-C", "primary", "-u", "seal.pub", "-r", "seal.priv", "-c", "seal", fails=True)
        await machine.detach(id)

        await attach(machine, UUID)
        await machine.connected(id)
        await run("startup", "-c")
        assert re.search(r"10: 0x0{64}", await run("pcrread", "sha256:10"))
        await run("createprimary", "-c", "primary")
        await run.flush()
        await run("load", "-C", "primary", "-u", "seal.pub", "-r", "seal.priv", "-c", "seal")
        await run.flush()
        assert await run("unseal", "-c", "seal") == "nobody knows"
        assert list((machine.folder / "tpms" / OTHER_UUID).rglob("*.volatilestate")) == []
    for path in (machine.folder / "tpms").rglob("*"):
        assert path.stat().st_mode & 0o007 == 0
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700


async def test_version_1_2(machine: Machine) -> None:
    """A TPM 1.2 starts up, and its registers are read and extended; it is still a 1.2 when it is attached again."""
    async with pair(machine, version="1.2") as (_, guest, id):
        startup, read, add = (
            bytes.fromhex("00c10000000c000000990001"),
            bytes.fromhex("00c10000000e000000150000000a"),
            bytes.fromhex("00c100000022000000140000000a") + b"\x11" * 20,
        )
        answers = await ask(guest, id, startup, read, add, read, GET_RANDOM)
        assert [answer[:2].hex() for answer in answers] == ["00c4"] * 5
        assert answers[1][-20:] == bytes(20)
        assert answers[2][-20:] == answers[3][-20:] != bytes(20)
        assert result(answers[4]) == "0000000a"  # TPM_BAD_ORDINAL: what a 1.2 says to a command of 2.0
        await machine.detach(id)
        await attach(machine)
        await machine.connected(id)
        assert await machine.read(id.backend_path + "/tpm-version") == b"1.2"
        await machine.detach(id)
        await attach(machine, version="2.0")
        await machine.until(id, backend=State.CLOSED)
        error = await machine.read(id.error_path(Side.BACKEND))
        assert error is not None
        assert b"was made as version 1.2, but 2.0 is asked for" in error
        await machine.detach(id)


async def test_encrypted_with_a_key(machine: Machine) -> None:
    """State is encrypted with the configured key; without the key the TPM cannot be used."""
    key = machine.folder / "key"
    key.write_text("0123456789abcdef" * 4 + "\n")
    back, guest = await serve(machine, key_file=str(key)), await agent(machine)
    id = await attach(machine)
    await machine.connected(id)
    assert [result(answer) for answer in await ask(guest, id, STARTUP)] == ["00000000"]
    await machine.detach(id)
    await back.stop()
    back = await serve(machine)  # the path of the TPM's key is recorded in its home
    await attach(machine)
    await machine.connected(id)
    await machine.detach(id)
    key.write_text("f" * 64)
    await attach(machine)
    await machine.until(id, backend=State.CLOSED)
    assert b"swtpm cannot use the TPM" in (await machine.read(id.error_path(Side.BACKEND)) or b"")
    await machine.detach(id)
    key.write_text("short")
    await attach(machine)
    await machine.until(id, backend=State.CLOSED)
    assert b"holds no key: it should be 64" in (await machine.read(id.error_path(Side.BACKEND)) or b"")
    await machine.detach(id)
    await back.until(lambda: not swtpms(machine.folder))


# -- misfortune --------------------------------------------------------------------------------------------------------


async def test_swtpm_is_killed(machine: Machine) -> None:
    """If swtpm is killed, the next one resumes from its state: registers are not reset."""
    async with pair(machine) as (_, guest, id):
        _, before = await ask(guest, id, extend(10), pcr_read(10))
        await kill_swtpm(machine)
        assert [result(answer) for answer in await ask(guest, id, GET_RANDOM)] == ["00000000"]
        assert (await ask(guest, id, pcr_read(10)))[0][-32:] == before[-32:] != bytes(32)


async def test_swtpm_is_killed_under_a_command(machine: Machine, logged: list[Any]) -> None:
    """The command under way fails, and is not repeated; the next one works."""
    async with pair(machine) as (_, guest, id):
        [pid] = swtpms(machine.folder)
        os.kill(pid, signal.SIGSTOP)
        command = asyncio.create_task(ask(guest, id, extend(10)))
        page = machine.processes[1].device(id)
        await machine.processes[1].until(lambda: page.counters["requests"] == 2)
        await kill_swtpm(machine)
        assert [result(answer) for answer in await command] == [RC_FAILURE]
        assert (await ask(guest, id, pcr_read(10)))[0][-32:] == bytes(32)
    assert [entry["event"] for entry in logged if entry["log_level"] == "error"] == ["tpm.lost"]


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_the_daemon_is_restarted(machine: Machine, end: str) -> None:
    """The next daemon adopts the page and resumes the TPM: registers keep their values; the frontend sees no change."""
    async with pair(machine) as (back, guest, id):
        _, before = await ask(guest, id, extend(10), pcr_read(10))
        await (back.stop() if end == "stopped" else back.kill())
        waiting = asyncio.create_task(ask(guest, id, pcr_read(10)))
        await guest.settle()
        await serve(machine)
        assert (await waiting)[0][-32:] == before[-32:] != bytes(32)
        assert guest.states(id, "frontend") == ["Initialising", "Initialised", "Connected"]


def test_a_command_is_carried_out_at_most_once() -> None:
    """If a daemon is killed with a command under way, the next daemon answers it with a failure: that is all that the
    waiting program in the guest notices, and the TPM works on."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, machine_of_processes(Path(folder)) as host:
        dom0 = host.serve()
        host.agent(1)
        done = host.ctl("attach", "vtpm", "--domain", "1", "--devid", "0", f"uuid={UUID}")
        assert done.returncode == 0, done.stderr + host.logs()
        with socket.socket(socket.AF_UNIX) as program:
            program.settimeout(DEADLINE_S)
            program.connect(f"{host.path}.dom1/vtpm-0.sock")
            program.sendall(STARTUP)
            assert result(program.recv(4096)) == "00000000"
            [pid] = swtpms(Path(folder))
            os.kill(pid, signal.SIGSTOP)
            program.sendall(extend(10))
            note = Path(f"{host.path}.dom0/vtpm-1-0.ring")
            deadline = time.monotonic() + DEADLINE_S
            while note.read_bytes()[-1:] != b"\1":  # the command is begun with
                assert time.monotonic() < deadline
            dom0.kill()
            dom0.wait()
            host.serve()
            assert result(program.recv(4096)) == RC_FAILURE
            program.sendall(pcr_read(10))
            assert program.recv(4096)[-32:] == bytes(32)
            program.sendall(extend(10))
            assert result(program.recv(4096)) == "00000000"


async def test_the_agent_is_killed(machine: Machine) -> None:
    """The next agent finds the TPM as it was; a command that waited for an answer has ended with the old agent."""
    async with pair(machine) as (_, guest, id):
        await machine.start(tpm.GUEST)
        _, before = await ask(guest, id, extend(10), pcr_read(10))
        await guest.kill()
        second = await agent(machine)
        await second.until(lambda: second.states(id, "frontend")[-1:] == ["Connected"])
        assert (await ask(second, id, pcr_read(10)))[0][-32:] == before[-32:] != bytes(32)


async def test_one_user_of_a_uuid(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second device with the same uuid is refused with a reason; the first works on."""
    monkeypatch.setattr("xenbusd_vtpm.tpm.LOCK_S", 0.1)
    async with pair(machine) as (_, guest, id):
        second = await attach(machine, UUID, devid=1)
        await machine.until(second, backend=State.CLOSED)
        told = await machine.read(second.error_path(Side.BACKEND)) or b""
        assert told.startswith(b"%d the TPM %s is in use by another device" % (errno.EBUSY, UUID.encode()))
        await machine.detach(second)
        assert [result(answer) for answer in await ask(guest, id, GET_RANDOM)] == ["00000000"]


async def test_a_uuid_is_no_path(machine: Machine) -> None:
    """A text that is not a uuid is refused, and no folder is made."""
    await serve(machine)
    await agent(machine)
    id = machine.id("vtpm")
    await machine.attach(id, {"uuid": "../../../../tmp/somewhere", "handle": "0"}, {"handle": "0"})
    await machine.until(id, backend=State.CLOSED)
    assert b"is no uuid" in (await machine.read(id.error_path(Side.BACKEND)) or b"")
    assert not (machine.folder / "tpms").exists()
    await machine.detach(id)


async def test_a_half_made_tpm_is_made_anew(machine: Machine) -> None:
    """A TPM whose making was interrupted by a crash is made anew."""
    home = machine.folder / "tpms" / UUID
    (home / "new").mkdir(parents=True)
    (home / "new" / "tpm2-00.permall").write_bytes(b"half")
    (home / "state").mkdir()
    async with pair(machine) as (_, guest, id):
        assert [result(answer) for answer in await ask(guest, id, GET_RANDOM)] == ["00000000"]
        assert not (home / "new").exists()


async def test_there_is_no_swtpm(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without swtpm's package the error node says what to install."""
    (machine.folder / "bin").mkdir()
    (machine.folder / "bin/setpriv").symlink_to(str(shutil.which("setpriv")))
    monkeypatch.setenv("PATH", str(machine.folder / "bin"))
    await serve(machine)
    await agent(machine)
    id = await attach(machine)
    await machine.until(id, backend=State.CLOSED)
    told = await machine.read(id.error_path(Side.BACKEND)) or b""
    assert told.startswith(b"%d " % errno.ENOPKG)
    assert b"apt-get install swtpm swtpm-tools" in told
    await machine.detach(id)

"""hotplug/block-xenbusd, run as xenbusd runs it, with Xen's own xenstore-* tools against the embedded store."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from xenbusd import log
from xenbusd.errors import HotplugError
from xenbusd.hotplug import ScriptRunner
from xenbusd.store.server import StoreServer

pytestmark = pytest.mark.skipif(
    shutil.which("xenstore-write") is None, reason="Xen's store tools are not installed: apt-get install xenstore-utils"
)

SCRIPT = str(Path(__file__).parents[3] / "hotplug" / "block-xenbusd")
BACKEND = "/local/domain/0/backend/vbd/3/51712"


class Tools:
    """Xen's command-line tools, on one store."""

    def __init__(self, socket: str) -> None:
        self._environ = {**os.environ, "XENSTORED_PATH": socket}
        self.runner = ScriptRunner(timeout_s=60, store_socket=socket, log=log.get())

    async def call(self, *argv: str, **environ: str) -> tuple[int, str, str]:
        """Run a program; return its status and what it printed on both streams."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=self._environ | environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def write(self, **nodes: str) -> None:
        """Write keys of the backend's directory, by xenstore-write."""
        pairs = [word for key, value in nodes.items() for word in (f"{BACKEND}/{key}", value)]
        status, _, err = await self.call("xenstore-write", *pairs)
        assert status == 0, err

    async def nodes(self) -> dict[str, str]:
        """What is in the backend's directory, by xenstore-list and xenstore-read."""
        _, names, _ = await self.call("xenstore-list", BACKEND)
        keys = names.split()
        _, values, _ = await self.call("xenstore-read", *(f"{BACKEND}/{key}" for key in keys))
        return dict(zip(keys, values.splitlines(), strict=True))

    async def add(self) -> None:
        """Run the script as the daemon does."""
        await self.runner.run(SCRIPT, "add", backend_path=BACKEND, device_class="vbd")

    async def refusal(self) -> str:
        """Run the script, which must fail; return the sentence, which must stand in the store and on stderr alike."""
        with pytest.raises(HotplugError) as caught:
            await self.add()
        nodes = await self.nodes()
        assert caught.value.status == 1
        printed = caught.value.stderr_tail.replace("\n", "\\n")  # as xenstore-read shows a line break
        assert printed.endswith(f"block-xenbusd: {nodes['hotplug-error']}")
        assert nodes["hotplug-status"] == "error"
        assert "physical-device-path" not in nodes
        return nodes["hotplug-error"]


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    """A store with nothing in it, and the tools that reach it."""
    server = StoreServer()
    socket = str(tmp_path / "store")
    await server.listen(socket)
    yield Tools(socket)
    await server.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk image, with a space in its name."""
    path = tmp_path / "my disk.img"
    path.write_bytes(bytes(4096))
    return path


@pytest.mark.parametrize("prefix", ["", "raw:"])
@pytest.mark.parametrize("mode", ["r", "w"])
async def test_add_connects(tools: Tools, image: Path, prefix: str, mode: str) -> None:
    """An image that is fit for the mode: its path and `connected` are written, and nothing that wakes xen-blkback."""
    await tools.write(params=f"{prefix}{image}", mode=mode)
    await tools.add()
    assert await tools.nodes() == {
        "params": f"{prefix}{image}",
        "mode": mode,
        "physical-device-path": str(image),
        "hotplug-status": "connected",
    }


async def test_add_again_is_the_same(tools: Tools, image: Path) -> None:
    """A second add, after a failure was mended, connects."""
    await tools.write(params=str(image), mode="w")
    os.rename(image, f"{image}.away")
    assert await tools.refusal() == f"{image} does not exist"
    os.rename(f"{image}.away", image)
    await tools.add()
    assert (await tools.nodes())["hotplug-status"] == "connected"


async def test_a_link_is_followed(tools: Tools, image: Path, tmp_path: Path) -> None:
    """A symbolic link to an image is an image, under the name that was given."""
    link = tmp_path / "link"
    link.symlink_to(image)
    await tools.write(params=str(link), mode="w")
    await tools.add()
    assert (await tools.nodes())["physical-device-path"] == str(link)


@pytest.mark.parametrize("params", ["qcow2:{image}", "nbd://storage/export", "nbd:unix:/run/export.sock"])
async def test_what_is_not_raw_gets_no_device_path(tools: Tools, image: Path, params: str) -> None:
    """QEMU opens what physical-device-path names as a raw disk, for HVM guests: an image of another format is none, and
    one on the network is no file."""
    await tools.write(params=params.format(image=image), mode="w")
    await tools.add()
    nodes = await tools.nodes()
    assert nodes["hotplug-status"] == "connected"
    assert "physical-device-path" not in nodes


async def test_any_file_name_arrives_whole(tools: Tools, tmp_path: Path) -> None:
    """A name with letters beyond ASCII, a backslash and an escape in it goes into the store byte for byte."""
    image = tmp_path / "Festplatte für \\n %s \\x41.img"
    image.write_bytes(b"")
    status, _, err = await tools.call("xenstore-write", "-R", f"{BACKEND}/params", str(image), f"{BACKEND}/mode", "w")
    assert status == 0, err
    await tools.add()
    assert await tools.call("xenstore-read", "-R", f"{BACKEND}/physical-device-path") == (0, str(image), "")


@pytest.mark.parametrize(
    ("params", "mode", "sentence"),
    [
        ("{tmp}/gone.img", "w", "{tmp}/gone.img does not exist"),
        ("gone.img", "w", "/dev/gone.img does not exist"),
        ("{tmp}", "w", "{tmp} is neither a file nor a block device"),
        ("null", "w", "/dev/null is neither a file nor a block device"),
        ("qcow2:{tmp}/gone.qcow2", "w", "{tmp}/gone.qcow2 does not exist"),
        (
            "qcow2:image.qcow2",
            "w",
            "after qcow2: there must be an absolute path, as in target=qcow2:/srv/disk.qcow2",
        ),
        ("", "w", "no image is named; give one: target=/path/to/image"),
        ("raw:", "w", "no image is named; give one: target=/path/to/image"),
        ("{image}", "x", "the disk's mode must be r or w"),
        ("{image}", "", "the disk's mode must be r or w"),
        ("{image}\n", "w", "{image}\\n does not exist"),
    ],
)
async def test_add_refuses(tools: Tools, image: Path, tmp_path: Path, params: str, mode: str, sentence: str) -> None:
    """A disk that cannot be served: exit status 1 and a sentence for the administrator, in the store and on stderr."""
    await tools.write(params=params.format(tmp=tmp_path, image=image), mode=mode)
    assert (await tools.refusal()).startswith(sentence.format(tmp=tmp_path, image=image))


@pytest.mark.parametrize(
    ("held", "mode", "free"),
    [
        (fcntl.LOCK_EX, "w", False),
        (fcntl.LOCK_EX, "r", False),
        (fcntl.LOCK_SH, "w", False),
        (fcntl.LOCK_SH, "r", True),
        (fcntl.LOCK_EX, "w!", True),
        (fcntl.LOCK_EX, "r!", True),
    ],
)
async def test_an_image_in_use_is_refused(tools: Tools, image: Path, held: int, mode: str, free: bool) -> None:
    """What another process holds locked is refused, but not to a reader among readers, nor to who asked to share."""
    await tools.write(params=str(image), mode=mode)
    holder = os.open(image, os.O_RDONLY)
    fcntl.flock(holder, held)
    if free:
        await tools.add()
    else:
        assert await tools.refusal() == f"{image} is in use by another device or program"
    os.close(holder)
    await tools.add()  # the lock is free now: the script keeps none


async def test_a_shell_cannot_be_fooled(tools: Tools, tmp_path: Path) -> None:
    """A path with all that a shell might act on is a path."""
    name = f"{tmp_path}/$(touch {tmp_path}/owned) `touch {tmp_path}/owned`; * ' \" -e"
    await tools.write(params=name, mode="w")
    assert await tools.refusal() == f"{name} does not exist"
    assert os.listdir(tmp_path) == ["store"]


async def test_missing_keys(tools: Tools) -> None:
    """A directory without params or mode is refused with who should have written them."""
    await tools.write(params="/x")
    assert (await tools.refusal()).startswith(
        "params or mode is missing in backend/vbd/3/51712; was the disk attached by"
    )


async def test_a_read_only_image_is_not_attached_for_writing() -> None:
    """mode w on an image that cannot be written is refused; mode r is served. Root steps down first."""
    user = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all"] if os.geteuid() == 0 else []
    # pytest's own folder is closed to others, and so may be the folder of this repository.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        script, image, socket = shutil.copy(SCRIPT, folder), f"{folder}/a.img", f"{folder}/store"
        os.close(os.open(image, os.O_CREAT | os.O_WRONLY, 0o444))
        server = StoreServer()
        await server.listen(socket)
        os.chmod(socket, 0o666)
        tools = Tools(socket)
        await tools.write(params=image, mode="w")
        status, _, err = await tools.call(*user, script, "add", XENBUS_PATH="backend/vbd/3/51712")
        sentence = f"{image} cannot be written; attach the disk read-only (mode=r), or make the image writable"
        assert (status, err) == (1, f"block-xenbusd: {sentence}\n")
        assert (await tools.nodes())["hotplug-error"] == sentence
        await tools.write(mode="r")
        status, _, err = await tools.call(*user, script, "add", XENBUS_PATH="backend/vbd/3/51712")
        assert (status, err) == (0, "")
        assert (await tools.nodes())["hotplug-status"] == "connected"
        await server.close()


async def test_remove_leaves_everything(tools: Tools, image: Path) -> None:
    """remove succeeds and touches nothing: nothing was made at add."""
    await tools.write(params=str(image), mode="w")
    before = await tools.nodes()
    await tools.runner.run(SCRIPT, "remove", backend_path=BACKEND, device_class="vbd")
    assert await tools.nodes() == before


@pytest.mark.parametrize("arguments", [[], ["online"], ["add", "more"], [""]])
async def test_usage(tools: Tools, arguments: list[str]) -> None:
    """Called in another way it says how it is called, and exits with 1."""
    status, out, err = await tools.call(SCRIPT, *arguments, XENBUS_PATH="backend/vbd/3/51712")
    assert (status, out) == (1, "")
    assert err.startswith("usage: block-xenbusd add|remove")


async def test_by_hand(tools: Tools) -> None:
    """Without XENBUS_PATH it says that it is not to be run by hand."""
    status, _, err = await tools.call(SCRIPT, "add", XENBUS_PATH="")
    assert status == 1
    assert "XENBUS_PATH is not set" in err


async def test_few_processes(tools: Tools, image: Path, tmp_path: Path) -> None:
    """add calls the store's tools twice and no other program: starting one takes long in a small dom0."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("xenstore-read", "xenstore-write"):
        real = shutil.which(name)
        (folder / name).write_text(f'#!/bin/sh\necho {name} >> {tmp_path}/calls\nexec {real} "$@"\n')
        (folder / name).chmod(0o755)
    await tools.write(params=str(image), mode="w")
    status, _, err = await tools.call(SCRIPT, "add", XENBUS_PATH="backend/vbd/3/51712", PATH=str(folder))
    assert (status, err) == (0, "")
    assert (tmp_path / "calls").read_text().split() == ["xenstore-read", "xenstore-write"]

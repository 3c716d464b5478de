"""An image that records every operation, and fails when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from xenbusd_vbd.image.raw import Image
from xenbusd_vbd.image.traits import Traits


class FakeImage(Image):
    """The surface of an `Image`, without a file.

    Args:
        in_memory: whether it says that it never waits for a device.
        cached: whether reads with `nowait` are answered.
        sectors: its size.
    """

    def __init__(
        self, *, in_memory: bool = False, cached: bool = False, sectors: int = 1 << 20, writable: bool = True
    ) -> None:
        self.path = "/fake.img"
        self.fd = self.direct_fd = -1
        self.traits = Traits(
            is_device=False,
            logical_block_bytes=512,
            physical_sector_bytes=512,
            in_memory=in_memory,
            on_network=False,
            discard_granularity=4096,
            discard_alignment=0,
            discards=writable,
            secure_erase=False,
        )
        self.cached = cached
        self.writable = writable
        self.size_bytes = sectors * 512
        self.can_discard = writable
        self.calls: list[tuple[object, ...]] = []
        """("read", offset, length) and the like, in the order of their doing."""
        self.threads: set[int] = set()
        """Where it was done."""
        self.errors: dict[str, OSError] = {}
        """What to raise, by "read", "read nowait", "write", "flush" or "discard"."""

    def _note(self, what: str, *arguments: object) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append((what, *arguments))
        if what in self.errors:
            raise self.errors[what]

    def read(self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False) -> bool:
        """Fill the buffers with "r"; with `nowait`, only if `cached`."""
        self._note("read nowait" if nowait else "read", offset, length)
        if nowait and not self.cached:
            return False
        for buffer in buffers:
            buffer[:] = b"r" * len(buffer)
        return True

    def write(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """Note the data."""
        assert sum(map(len, buffers)) == length
        self._note("write", offset, b"".join(buffers))

    def flush(self) -> None:
        """Note it."""
        self._note("flush")

    def discard(self, offset: int, length: int, *, secure: bool = False) -> None:
        """Note it."""
        assert not secure
        self._note("discard", offset, length)

    def close(self) -> None:
        """Nothing is open."""

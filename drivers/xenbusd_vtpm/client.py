"""The frontend's data path: sends TPM commands through a shared page, one at a time.

It outlives a connection. A command that is in the page when the connection ends is answered with a failure, because the
TPM may or may not have carried it out. A command that has not been written into the page waits for the next connection.
"""

from __future__ import annotations

import asyncio

from xenbusd.api import PAGE_SIZE, OtherendError, PageLink, Share
from xenbusd_vtpm.protocol import (
    EXTRA_PAGES,
    HEAD,
    LENGTH,
    MESSAGE_MAX,
    STATE_AT,
    TPM_1_2,
    Head,
    PageState,
    Version,
    is_whole,
    pieces,
    read_head,
)


class PageClient:
    """Sends commands through the attached page; while there is none, commands wait."""

    def __init__(self) -> None:
        self.version: Version = TPM_1_2
        """The TPM's version, as the backend says."""
        self._link: PageLink | None = None
        self._extra: Share | None = None
        self._attached = asyncio.Event()
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[bytes] | None = None
        self._dead = False

    def attach(self, link: PageLink, extra: Share, version: Version) -> None:
        """Send commands through a connected page from now on.

        Args:
            link: the page, all zeros.
            extra: `EXTRA_PAGES` more pages.
            version: the TPM's.
        """
        self._link, self._extra, self.version = link, extra, version
        self._attached.set()

    def detach(self) -> None:
        """Stop using the page: a command in it fails, later ones wait. Idempotent."""
        self._attached.clear()
        self._link = self._extra = None
        self._settle(self.version.refusal(self.version.failure))

    def die(self) -> None:
        """Fail every command from now on: no page will be attached any more. Idempotent."""
        self._dead = True
        self.detach()
        self._attached.set()

    async def execute(self, command: bytes, locality: int = 0) -> bytes:
        """Send a command, after all earlier ones, and wait for its response.

        Args:
            command: any bytes; if they are not a whole command, it is refused here.
            locality: 0 to 4.

        Returns:
            A whole response.
        """
        async with self._turn:
            if not is_whole(command):
                return self.version.refusal(self.version.bad_size)
            await self._attached.wait()
            if self._dead or self._link is None or self._extra is None:
                return self.version.refusal(self.version.failure)
            self._answer = asyncio.get_running_loop().create_future()
            self._submit(self._link, self._extra, command, locality)
            try:
                return await self._answer
            except asyncio.CancelledError:
                self.cancel()
                raise
            finally:
                self._answer = None

    def _submit(self, link: PageLink, extra: Share, command: bytes, locality: int) -> None:
        link.counters["requests"] += 1
        link.counters["bytes"] += len(command)
        head = Head(len(command), PageState.IDLE, locality, tuple(extra.grefs[:EXTRA_PAGES]))
        for piece in pieces(head, len(command)):
            part = command[piece.start : piece.start + piece.length]
            if piece.page:
                at = (piece.page - 1) * PAGE_SIZE
                extra.view[at : at + len(part)] = part
            else:
                link.page[piece.offset : piece.offset + len(part)] = part
        for number, gref in enumerate(head.extra_grefs):
            link.page[HEAD.size + 4 * number : HEAD.size + 4 * number + 4] = LENGTH.pack(gref)
        link.page[: LENGTH.size] = LENGTH.pack(len(command))
        link.page[STATE_AT + 1 : HEAD.size] = bytes([locality, 0, len(head.extra_grefs)])
        link.fence()
        link.page[STATE_AT] = PageState.SUBMIT
        link.notify()

    def cancel(self) -> None:
        """Ask the backend to abort the command under way, because nobody waits for its response any more."""
        if self._link is not None and self._link.page[STATE_AT] == PageState.SUBMIT:
            self._link.page[STATE_AT] = PageState.CANCEL
            self._link.notify()

    def drain(self) -> bool:
        """Take the response from the page, if there is one; the link calls this. Return whether there was one.

        Raises:
            OtherendError: the page holds what no honest backend writes.
        """
        link, extra, answer = self._link, self._extra, self._answer
        if link is None or extra is None or answer is None or answer.done():
            return False
        state = link.page[STATE_AT]
        if state == PageState.FINISH:
            head = read_head(link.page)
            own = tuple(extra.grefs[:EXTRA_PAGES])  # those in the page now may have been overwritten by the backend
            response = self._read(link, extra, head._replace(extra_grefs=own))
            if not is_whole(response):
                raise OtherendError(f"{head.length} bytes that are not a TPM response: {response[:16].hex()}")
            self._settle(response)
            return True
        if state == PageState.IDLE:
            self._settle(self.version.refusal(self.version.cancelled))
            return True
        if state > PageState.CANCEL:
            raise OtherendError(f"the page's state is {state}, which does not exist")
        return False

    @staticmethod
    def _read(link: PageLink, extra: Share, head: Head) -> bytes:
        length = min(head.length, MESSAGE_MAX + 1)
        parts = []
        for piece in pieces(head, length):
            if piece.page:
                at = (piece.page - 1) * PAGE_SIZE
                parts.append(bytes(extra.view[at : at + piece.length]))
            else:
                parts.append(bytes(link.page[piece.offset : piece.offset + piece.length]))
        return b"".join(parts)

    def _settle(self, response: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(response)

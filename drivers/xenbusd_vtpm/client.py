"""The frontend's data path: a TPM for this domain's programs, made of a shared page; one command at a time.

It outlives a connection. A command that was in the page when the connection ended is answered with a failure, for
nobody knows whether it was done; one that had not come to that waits for the next connection.
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
    """Sends commands through a page, while one is attached."""

    def __init__(self) -> None:
        self.version: Version = TPM_1_2
        """What the backend says that it is."""
        self._link: PageLink | None = None
        self._extra: Share | None = None
        self._attached = asyncio.Event()
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[bytes] | None = None
        self._dead = False

    def attach(self, link: PageLink, extra: Share, version: Version) -> None:
        """Use a connected page.

        Args:
            link: the page, all zeros.
            extra: `EXTRA_PAGES` pages more.
            version: of the TPM behind it.
        """
        self._link, self._extra, self.version = link, extra, version
        self._attached.set()

    def detach(self) -> None:
        """Leave the page: a command in it fails. Idempotent."""
        self._attached.clear()
        self._link = self._extra = None
        self._settle(self.version.refusal(self.version.failure))

    def die(self) -> None:
        """No page will come any more: every command fails. Idempotent."""
        self._dead = True
        self.detach()
        self._attached.set()

    async def execute(self, command: bytes, locality: int = 0) -> bytes:
        """Have a command done, after those before it.

        Args:
            command: anything; what is not a whole command is refused here.
            locality: 0 to 4.

        Returns:
            A response, whole.
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
        """Ask for an early end of the command under way, for whose answer nobody waits any more."""
        if self._link is not None and self._link.page[STATE_AT] == PageState.SUBMIT:
            self._link.page[STATE_AT] = PageState.CANCEL
            self._link.notify()

    def drain(self) -> bool:
        """See whether there is an answer. For the link.

        Raises:
            OtherendError: what no honest backend writes.
        """
        link, extra, answer = self._link, self._extra, self._answer
        if link is None or extra is None or answer is None or answer.done():
            return False
        state = link.page[STATE_AT]
        if state == PageState.FINISH:
            head = read_head(link.page)
            own = tuple(extra.grefs[:EXTRA_PAGES])  # what stands in the page now may be anybody's
            response = self._read(link, extra, head._replace(extra_grefs=own))
            if not is_whole(response):
                raise OtherendError(f"a response of {head.length} bytes that is none: {response[:16].hex()}")
            self._settle(response)
            return True
        if state == PageState.IDLE:
            self._settle(self.version.refusal(self.version.cancelled))
            return True
        if state > PageState.CANCEL:
            raise OtherendError(f"the page's state is {state}, which is none")
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

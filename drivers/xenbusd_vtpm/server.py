"""The backend's data path: from the page to the TPM and back, one command at a time, each done at most once."""

from __future__ import annotations

import asyncio
import contextlib

from xenbusd.api import BackPage, Copy, Domid, Gref, OtherendError
from xenbusd_vtpm.protocol import LENGTH, MESSAGE_MAX, STATE_AT, Head, PageState, Piece, pieces, read_head
from xenbusd_vtpm.tpm import Tpm

FINISH_S = 8.0
"""The longest that a command under way may take when the connection ends; the supervisor allows a little more."""


class PageServer:
    """Carries out the commands that come through one page. The link calls `drain`; `finish` must be awaited.

    Args:
        link: the connected page.
        tpm: carries the commands out.
        domid: the domain that grants the extra pages.
    """

    def __init__(self, link: BackPage, tpm: Tpm, domid: Domid) -> None:
        self._link = link
        self._tpm = tpm
        self._domid = domid
        self._begun: tuple[Head, bytes] | None = None
        """The command under way, with the page's head as it was when the command was taken."""
        self._cancelled = False
        self._inherited = link.taken
        """The page may hold a command that the previous daemon took and did not answer."""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._worker = asyncio.create_task(self._work(), name="vtpm commands")

    def drain(self) -> bool:
        """Take a command from the page, or pass a cancel on to the TPM. Return whether there was anything to do.

        Raises:
            OtherendError: the page holds what no honest frontend writes.
        """
        state = self._link.page[STATE_AT]
        if self._begun is not None:
            if state != PageState.CANCEL or self._cancelled:
                return False
            self._cancelled = True
            self._tpm.cancel()  # the command is answered all the same, if need be in full
            return True
        if state == PageState.SUBMIT:
            self._begin()
            return True
        self._inherited = False
        if state == PageState.CANCEL:
            self._show(PageState.IDLE)
            return True
        if state > PageState.CANCEL:
            raise OtherendError(f"the page's state is {state}, which does not exist")
        return False

    def _begin(self) -> None:
        head = read_head(self._link.page)
        command = self._read(head)
        self._link.counters["requests"] += 1
        self._link.counters["bytes"] += len(command)
        self._idle.clear()
        self._begun, self._cancelled = (head, command), False
        if self._inherited:
            # The previous daemon gave this command to the TPM, which may have carried it out: it must not run twice.
            self._inherited = False
            self._link.dev.log.warning("tpm.unanswered", reason="a command was under way when the daemon ended")
            self._answer(self._tpm.version.refusal(self._tpm.version.failure))
        else:
            self._link.taken = True
            self._wake.set()

    async def _work(self) -> None:
        """Carry out one command after the other."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            assert self._begun is not None
            head, command = self._begun
            try:
                self._answer(await self._tpm.execute(command, head.locality))
            except Exception as error:
                self._link.dev.fail(error)
                self._idle.set()
                return

    def _answer(self, response: bytes) -> None:
        """Write the response, then FINISH."""
        assert self._begun is not None
        head, _ = self._begun
        if len(response) > head.room:
            response = self._tpm.version.refusal(self._tpm.version.failure)
        self._write(head, response)
        self._link.page[: LENGTH.size] = LENGTH.pack(len(response))
        self._link.fence()
        self._begun = None
        self._show(PageState.FINISH)
        self._link.taken = False
        self._idle.set()

    def _show(self, state: PageState) -> None:
        self._link.page[STATE_AT] = state
        self._link.notify()

    # -- the pages ---------------------------------------------------------------------------------------------------

    def _read(self, head: Head) -> bytes:
        """Copy a command, once. Of one that is too long only so much is copied that the TPM refuses it."""
        command = bytearray(min(head.length, MESSAGE_MAX + 1))
        layout = pieces(head, len(command))
        self._copy_extra(head, layout, memoryview(command), to_grant=False)
        for piece in layout[:1]:
            command[: piece.length] = self._link.page[piece.offset : piece.offset + piece.length]
        return bytes(command)

    def _write(self, head: Head, response: bytes) -> None:
        layout = pieces(head, len(response))
        self._copy_extra(head, layout, memoryview(bytearray(response)), to_grant=True)
        for piece in layout[:1]:
            self._link.page[piece.offset : piece.offset + piece.length] = response[: piece.length]

    def _copy_extra(self, head: Head, layout: list[Piece], message: memoryview, *, to_grant: bool) -> None:
        """Copy the parts that lie in extra pages, by grant copy: a page that is not mapped needs no unmapping."""
        copies = [
            Copy(
                to_grant,
                self._domid,
                Gref(head.extra_grefs[piece.page - 1]),
                piece.offset,
                message[piece.start : piece.start + piece.length],
            )
            for piece in layout
            if piece.page
        ]
        if copies and (bad := [status for status in self._link.grants.copy(copies) if status]):
            raise OtherendError(f"an extra page cannot be copied (errno {bad[0]}): is it granted to this domain?")

    async def finish(self) -> None:
        """Wait for the command under way, then stop. A frontend that still waits gets a failure as its answer: Linux's
        tpmfront would wait for minutes, and block every other device of its domain. Only if the daemon stops is it left
        waiting: the next daemon answers."""
        if self._begun is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINISH_S):
                    await self._idle.wait()
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        if not self._link.dev.stopping and self._link.page[STATE_AT] == PageState.SUBMIT:
            with contextlib.suppress(OtherendError):
                if self._begun is None:
                    self._begun = read_head(self._link.page), b""
                self._answer(self._tpm.version.refusal(self._tpm.version.failure))

"""Grants on the simulated host: pages in memory files that the broker makes and hands over.

A call has the name of the library function that does the same on real Xen, so that a log reads alike on both.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from xenbusd.errors import GrantError
from xenbusd.host.grefs import in_words
from xenbusd.host.interface import Copy, Grants, Mapping, Share
from xenbusd.host.segments import check
from xenbusd.host.sim.connection import BrokerConnection, Reply
from xenbusd.host.sim.pages import Pages, Run, runs
from xenbusd.host.sim.protocol import BATCH, Verb
from xenbusd.ids import PAGE_SIZE, Domid, Gref


class SimMapping(Mapping):
    """Made by `SimGrants.map`."""

    def __init__(self, grants: SimGrants, pages: Pages, handles: list[int]) -> None:
        self.view = pages.view
        self._grants = grants
        self._pages = pages
        self._handles = handles

    def unmap(self) -> None:
        """See `Mapping.unmap`."""
        try:
            self._pages.close()
        finally:
            self.view = self._pages.view
        self._grants.give_back(self._handles)


class SimShare(Share):
    """Made by `SimGrants.share`."""

    def __init__(self, grants: SimGrants, pages: Pages, grefs: tuple[Gref, ...]) -> None:
        self.view = pages.view
        self.grefs = grefs
        self._grants = grants
        self._pages = pages
        self._shared = True

    def unshare(self) -> None:
        """See `Share.unshare`."""
        try:
            self._pages.close()
        finally:
            self.view = self._pages.view
        if self._shared:
            self._shared = False
            self._grants.broker.call(Verb.UNSHARE, self.grefs[0])


class SimGrants(Grants):
    """The grant tables, as the broker keeps them.

    Args:
        broker: the connection through which all grants and mappings are held.
    """

    def __init__(self, broker: BrokerConnection) -> None:
        self.broker = broker

    def map(self, domid: Domid, grefs: Sequence[Gref], *, writable: bool = True) -> SimMapping:
        """See `Grants.map`."""
        about = f"domain {domid}, references {in_words(grefs)}, {'writable' if writable else 'read-only'}"
        if not grefs:
            raise GrantError("xengnttab_map_domain_grant_refs", errno.EINVAL, about)
        handles: list[int] = []
        fds: list[int] = []
        parts: list[Run] = []
        try:
            for start in range(0, len(grefs), BATCH):
                reply = self.broker.call(Verb.MAP, domid, writable, *grefs[start : start + BATCH])
                if reply.errno:
                    if reply.words:
                        about += f"; not granted: {in_words(reply.words)}"
                    raise GrantError("xengnttab_map_domain_grant_refs", reply.errno, about)
                fds += reply.fds
                handles.append(reply.words[0])
                places = zip(reply.words[1::2], reply.words[2::2], strict=True)
                parts += runs((reply.fds[index], page) for index, page in places)
            return SimMapping(self, Pages(parts, writable=writable), handles)
        except OSError as error:
            self.give_back(handles)
            raise GrantError("xengnttab_map_domain_grant_refs", error.errno or errno.EIO, about) from error
        except BaseException:
            self.give_back(handles)
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def give_back(self, handles: list[int]) -> None:
        """Report to the broker that the pages are no longer mapped here, and forget the handles."""
        while handles:
            self.broker.call(Verb.UNMAP, handles.pop())

    def copy(self, segments: Sequence[Copy]) -> list[int]:
        """See `Grants.copy`."""
        statuses = check(segments)
        # Many segments of a batch lie in few pages: ask once for each page and direction.
        wanted = list(
            dict.fromkeys(
                (segment.domid, segment.gref, segment.to_grant)
                for segment, status in zip(segments, statuses, strict=True)
                if not status
            )
        )
        found: dict[tuple[int, int, bool], tuple[int, int, int]] = {}
        replies: list[Reply] = []
        try:
            for start in range(0, len(wanted), BATCH):
                batch = wanted[start : start + BATCH]
                reply = self.broker.call(Verb.COPY, *(word for page in batch for word in page))
                if reply.errno:
                    raise GrantError("xengnttab_grant_copy", reply.errno, f"{len(segments)} segments")
                replies.append(reply)
                places = zip(reply.words[::3], reply.words[1::3], reply.words[2::3], strict=True)
                for key, (code, index, page) in zip(batch, places, strict=True):
                    found[key] = code, -1 if code else reply.fds[index], page * PAGE_SIZE
            return [
                status or _copy_one(segment, *found[segment.domid, segment.gref, segment.to_grant])
                for segment, status in zip(segments, statuses, strict=True)
            ]
        finally:
            for reply in replies:
                reply.close()

    def share(self, domid: Domid, pages: int, *, writable: bool = True) -> SimShare:
        """See `Grants.share`."""
        about = f"domain {domid}, {pages} pages"
        reply = self.broker.call(Verb.SHARE, domid, pages, writable)
        if reply.errno:
            raise GrantError("xengntshr_share_pages", reply.errno, about)
        first = reply.words[0]
        try:
            ours = Pages([Run(reply.fds[0], 0, pages)], writable=True)
        except OSError as error:
            self.broker.call(Verb.UNSHARE, first)
            raise GrantError("xengntshr_share_pages", error.errno or errno.EIO, about) from error
        finally:
            reply.close()
        return SimShare(self, ours, tuple(map(Gref, range(first, first + pages))))


def _copy_one(segment: Copy, code: int, fd: int, page_offset: int) -> int:
    """Copy one segment whose page the broker has found. Return its status."""
    if code:
        return code
    where = page_offset + segment.offset
    try:
        done = os.pwrite(fd, segment.local, where) if segment.to_grant else os.preadv(fd, [segment.local], where)
    except OSError as error:
        return error.errno or errno.EIO
    return 0 if done == segment.local.nbytes else errno.EIO

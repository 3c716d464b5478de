"""Every operation of the store, from the payload of a request to the payload of its answer. Pure.

Source: docs/misc/xenstore.txt, tools/xenstore/xenstored_core.c (wire_funcs).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable

from xenbusd.store.server import verbs
from xenbusd.store.server.caller import Caller
from xenbusd.store.server.domains import DOMID_SELF, Domain
from xenbusd.store.server.permissions import parse_permissions
from xenbusd.store.server.quotas import Refusal
from xenbusd.store.server.state import State
from xenbusd.store.server.transactions import Edit, Transaction
from xenbusd.store.wire import ABSOLUTE_PATH_MAX, PAYLOAD_MAX, RELATIVE_PATH_MAX, U32, Op

OK = b"OK\0"

_PATH = re.compile(rb"/|(?:/[A-Za-z0-9\-_@]+)+")
_HOME = re.compile(rb"/local/domain/[0-9]{1,5}/")
_NUMBER = re.compile(rb"[0-9]{1,10}")


def perform(state: State, caller: Caller, op: int, tx_id: int, payload: bytes) -> bytes:
    """Do one request and return the payload of the answer.

    Args:
        state: the store.
        caller: the connection that asks.
        op: any number; a number that is no operation is refused with ENOSYS.
        tx_id: the transaction that the request is part of; 0: none. Operations that are not about nodes ignore it.
        payload: the request's bytes, unchecked.

    Raises:
        Refusal: the answer is an ERROR.
    """
    on_nodes = _ON_NODES.get(op)
    if on_nodes is not None:
        if tx_id:
            return on_nodes(state, caller, _transaction(caller, tx_id), payload)
        answer = on_nodes(state, caller, None, payload)
        if state.tree.changes:
            state.fire()
        return answer
    if op == Op.TRANSACTION_END:
        return _transaction_end(state, caller, tx_id, payload)
    other = _OTHERS.get(op)
    if other is None:
        other = _PRIVILEGED.get(op)
        if other is None:
            raise Refusal(errno.ENOSYS)
        if not caller.domain.privileged:
            raise Refusal(errno.EACCES)
    return other(state, caller, payload)


def _read(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    return verbs.read(transaction or state.tree, caller.domain, _path(state, caller, _one(payload)))


def _get_perms(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    path = _path_or_special(state, caller, _one(payload))
    return _fitting(verbs.get_perms(transaction or state.tree, caller.domain, path).text)


def _directory(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    names, _ = verbs.directory(transaction or state.tree, caller.domain, _path(state, caller, _one(payload)))
    return _fitting(_joined(names))


def _directory_part(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    raw, offset = _strings(payload, 2)
    path = _path(state, caller, raw)
    start = _number(offset)
    names, generation = verbs.directory(transaction or state.tree, caller.domain, path)
    listing = _joined(names)
    answer = b"%d\0" % generation
    # Whole names only; and an empty one after the last, for which a byte is kept free.
    stop = min(len(listing), start + PAYLOAD_MAX - len(answer) - 1)
    stop = listing.rfind(b"\0", start, stop) + 1 or start
    return answer + listing[start:stop] + (b"\0" if stop >= len(listing) else b"")


def _write(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    end = payload.find(b"\0")
    if end < 0:
        raise Refusal(errno.EINVAL)
    domain, path, value = caller.domain, _path(state, caller, payload[:end]), payload[end + 1 :]
    return _edit(state, transaction, lambda view: verbs.write(view, domain, path, value))


def _mkdir(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    domain, path = caller.domain, _path(state, caller, _one(payload))
    return _edit(state, transaction, lambda view: verbs.mkdir(view, domain, path))


def _rm(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    domain, path = caller.domain, _path(state, caller, _one(payload))
    return _edit(state, transaction, lambda view: verbs.rm(view, domain, path))


def _set_perms(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    raw, *words = _strings(payload, 2, more=True)
    domain, path, perms = caller.domain, _path_or_special(state, caller, raw), parse_permissions(words)
    return _edit(state, transaction, lambda view: verbs.set_perms(view, domain, path, perms))


def _edit(state: State, transaction: Transaction | None, edit: Edit) -> bytes:
    if transaction is None:
        edit(state.tree)
    else:
        transaction.edit(edit)
    return OK


def _path(state: State, caller: Caller, raw: bytes) -> bytes:
    """Return the absolute path, or refuse an invalid one."""
    if raw.startswith(b"/"):
        if raw in state.tree.nodes:
            return raw
        path = raw
    else:
        if len(raw) > RELATIVE_PATH_MAX or raw.startswith(b"@"):
            raise Refusal(errno.EINVAL)
        path = caller.domain.home + raw
    if len(path) > ABSOLUTE_PATH_MAX or _PATH.fullmatch(path) is None:
        raise Refusal(errno.EINVAL)
    if not caller.domain.privileged:
        home = _HOME.match(path)
        if len(path) - (home.end() if home else 0) > caller.domain.quotas.path_bytes:
            raise Refusal(errno.EINVAL)
    return path


def _path_or_special(state: State, caller: Caller, raw: bytes) -> bytes:
    if not raw.startswith(b"@"):
        return _path(state, caller, raw)
    if raw not in state.tree.nodes:
        raise Refusal(errno.EINVAL)
    return raw


def _transaction_start(state: State, caller: Caller, transaction: Transaction | None, payload: bytes) -> bytes:
    domain = caller.domain
    _one(payload)
    if transaction is not None:
        raise Refusal(errno.EBUSY)
    nodes_max = None
    if not domain.privileged:
        nodes_max = domain.quotas.transaction_nodes
        if domain.transactions >= domain.quotas.transactions:
            raise Refusal(errno.ENOSPC)
    tx_id = caller.last_transaction
    while tx_id == 0 or tx_id in caller.transactions:
        tx_id = (tx_id + 1) & U32
    caller.last_transaction = tx_id
    caller.transactions[tx_id] = Transaction(state.tree, nodes_max)
    domain.transactions += 1
    return b"%d\0" % tx_id


def _transaction_end(state: State, caller: Caller, tx_id: int, payload: bytes) -> bytes:
    transaction = _transaction(caller, tx_id)
    verdict = _one(payload)
    if verdict not in (b"T", b"F"):
        raise Refusal(errno.EINVAL)
    del caller.transactions[tx_id]
    domain = caller.domain
    domain.transactions -= 1
    if verdict == b"T":
        state.tree.changes.extend(transaction.commit(lambda outcome: _within_quota(domain, outcome)))
        state.fire()
    return OK


def _watch(state: State, caller: Caller, payload: bytes) -> bytes:
    raw, token = _strings(payload, 2)
    cut = 0
    if raw.startswith(b"@"):
        path = raw
        if len(path) > RELATIVE_PATH_MAX:
            raise Refusal(errno.EINVAL)
    else:
        path = _path(state, caller, raw)
        if not raw.startswith(b"/"):
            cut = len(caller.domain.home)
    state.watch(caller, path, token, cut)
    return OK


def _unwatch(state: State, caller: Caller, payload: bytes) -> bytes:
    raw, token = _strings(payload, 2)
    state.unwatch(caller, raw if raw.startswith((b"/", b"@")) else caller.domain.home + raw, token)
    return OK


def _reset_watches(state: State, caller: Caller, _payload: bytes) -> bytes:
    state.reset(caller)
    return OK


def _get_domain_path(_state: State, _caller: Caller, payload: bytes) -> bytes:
    return b"/local/domain/%d\0" % _number(_one(payload))


def _is_domain_introduced(state: State, caller: Caller, payload: bytes) -> bytes:
    domid = _number(_one(payload))
    domain = caller.domain if domid == DOMID_SELF else state.domains.known(domid)
    return b"T\0" if domain is not None and domain.introduced else b"F\0"


def _introduce(state: State, _caller: Caller, payload: bytes) -> bytes:
    domid, _frame, port = map(_number, _strings(payload, 3))
    if port == 0:
        raise Refusal(errno.EINVAL)
    state.introduce(domid)
    return OK


def _release(state: State, _caller: Caller, payload: bytes) -> bytes:
    state.release(state.domains.introduced(_number(_one(payload))).domid)
    return OK


def _resume(state: State, _caller: Caller, payload: bytes) -> bytes:
    state.domains.introduced(_number(_one(payload)))
    return OK


def _set_target(state: State, _caller: Caller, payload: bytes) -> bytes:
    domain, target = (state.domains.introduced(_number(word)) for word in _strings(payload, 2))
    domain.target = target.domid
    return OK


def _control(_state: State, _caller: Caller, payload: bytes) -> bytes:
    if _strings(payload, 1)[0] != b"help":
        raise Refusal(errno.EINVAL)
    return b"help\0"


def _transaction(caller: Caller, tx_id: int) -> Transaction:
    transaction = caller.transactions.get(tx_id)
    if transaction is None:
        raise Refusal(errno.ENOENT)
    return transaction


def _within_quota(domain: Domain, outcome: Transaction) -> bool:
    """Return whether a domain may commit: the nodes that it owns have not grown beyond its quota."""
    return (
        domain.privileged
        or outcome.owned.get(domain.domid, 0) <= 0
        or outcome.owned_by(domain.domid) <= domain.quotas.nodes
    )


def _one(payload: bytes) -> bytes:
    """Return the one string that the payload must be: a single NUL, at its end."""
    if not payload or payload.find(b"\0") != len(payload) - 1:
        raise Refusal(errno.EINVAL)
    return payload[:-1]


def _strings(payload: bytes, least: int, *, more: bool = False) -> list[bytes]:
    """Return the first `least` strings of the payload, or, with `more`, all; bytes after the last NUL are ignored."""
    strings = payload.split(b"\0")[:-1]
    if len(strings) < least:
        raise Refusal(errno.EINVAL)
    return strings if more else strings[:least]


def _number(word: bytes) -> int:
    if _NUMBER.fullmatch(word) is None:
        raise Refusal(errno.EINVAL)
    return int(word)


def _joined(names: Iterable[bytes]) -> bytes:
    joined = b"\0".join(names)
    return joined + b"\0" if joined else b""


def _fitting(answer: bytes) -> bytes:
    if len(answer) > PAYLOAD_MAX:
        raise Refusal(errno.E2BIG)
    return answer


NodeHandler = Callable[[State, Caller, Transaction | None, bytes], bytes]
Handler = Callable[[State, Caller, bytes], bytes]

_ON_NODES: dict[int, NodeHandler] = {
    Op.READ: _read,
    Op.WRITE: _write,
    Op.MKDIR: _mkdir,
    Op.RM: _rm,
    Op.DIRECTORY: _directory,
    Op.DIRECTORY_PART: _directory_part,
    Op.GET_PERMS: _get_perms,
    Op.SET_PERMS: _set_perms,
    Op.TRANSACTION_START: _transaction_start,
}
_OTHERS: dict[int, Handler] = {
    Op.WATCH: _watch,
    Op.UNWATCH: _unwatch,
    Op.RESET_WATCHES: _reset_watches,
    Op.GET_DOMAIN_PATH: _get_domain_path,
    Op.IS_DOMAIN_INTRODUCED: _is_domain_introduced,
}
_PRIVILEGED: dict[int, Handler] = {
    Op.INTRODUCE: _introduce,
    Op.RELEASE: _release,
    Op.RESUME: _resume,
    Op.SET_TARGET: _set_target,
    Op.CONTROL: _control,
}

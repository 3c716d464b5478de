"""Installed files, and the record of their checksums, which shows whether the administrator has changed one.

All of them follow Debian's rule for configuration files: a file that the administrator has changed is kept, and a new
version is put beside it. So `xenbusd install` may be repeated at any time, and `uninstall` removes nothing that the
administrator has written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from xenbusd.errors import UsageError, XenbusdError

RECORD = "/var/lib/xenbusd/installed.json"
"""{role: {path: SHA-256 of the version that was installed at the path, or beside it}}."""

NEW = ".xenbusd-new"
"""The suffix of a new version that is put beside a changed file."""

OWN_FOLDERS = ("/etc/systemd/system/xenbusd.service.d", os.path.dirname(RECORD))
"""Folders that are removed once they are empty."""


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """One file of an installation."""

    path: str
    """An absolute path in the running system."""
    data: bytes
    mode: int = 0o644


class Installation:
    """The files that are installed below one root.

    Args:
        root: the folder that is, or will be, "/" of the system.
        dry_run: write nothing, only say what would be done.
        say: gets a line for each file.

    Raises:
        UsageError: the record cannot be read.
    Blocks: every method reads and writes files.
    """

    def __init__(self, root: str, *, dry_run: bool, say: Callable[[str], None]) -> None:
        self._root = root.rstrip("/")
        self._dry_run = dry_run
        self._say = say
        self._record = self._read_record()
        self._touched = False

    def recorded(self, role: str) -> frozenset[str]:
        """The paths of the files that are installed for a role."""
        return frozenset(self._record.get(role, {}))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that are installed."""
        return tuple(self._record)

    def is_changed(self, path: str) -> bool:
        """Whether there is a file at a path that differs from every version that was installed there."""
        known = {digest for of in self._record.values() for at, digest in of.items() if at == path}
        found = self._digest(path)
        return found is not None and found not in known

    def put(self, role: str, files: Iterable[InstalledFile]) -> bool:
        """Install a role's files, and remove its former files that are no longer among them.

        Returns:
            Whether a file was installed, updated or removed.

        Raises:
            XenbusdError: a file cannot be written.
        """
        before = self._record.get(role, {})
        wanted = {file.path: file for file in files}
        after = self._record.setdefault(role, {})
        try:
            for path in sorted(before.keys() - wanted.keys()):
                self._remove(role, path)
                del after[path]
            for file in wanted.values():
                self._put(file, before.get(file.path))
                after[file.path] = _digest(file.data)
        finally:
            self._write_record()
        return self._touched

    def remove(self) -> None:
        """Remove the files of all roles, except those that have been changed.

        Raises:
            XenbusdError: a file cannot be removed.
        """
        try:
            for role in self.roles:
                for path in sorted(self._record[role]):
                    self._remove(role, path)
                    del self._record[role][path]
                del self._record[role]
        finally:
            self._write_record()
        for folder in OWN_FOLDERS:
            self._remove_folder(folder)

    def _put(self, file: InstalledFile, recorded: str | None) -> None:
        new = _digest(file.data)
        found = self._digest(file.path)
        if found == new:
            self._report("unchanged", file.path)
        elif found is None:
            self._report("installed", file.path)
            self._write(file.path, file.data, file.mode)
        elif found == recorded:
            self._report("updated", file.path)
            self._write(file.path, file.data, file.mode)
        elif new == recorded:  # the administrator has changed it, but there is no new version
            self._report("kept", file.path, "it has been changed")
        else:
            self._report("kept", file.path, f"it has been changed; the new version is {file.path}{NEW}")
            self._write(file.path + NEW, file.data, file.mode)
            return
        if self._digest(file.path + NEW) == new:  # the administrator has taken the new version over
            self._unlink(file.path + NEW)

    def _remove(self, role: str, path: str) -> None:
        """Remove a file, unless another role has it too or it has been changed."""
        if any(path in of for other, of in self._record.items() if other != role):
            return
        recorded = self._record[role][path]
        if self._digest(path + NEW) == recorded:
            self._report("removed", path + NEW)
            self._unlink(path + NEW)
        found = self._digest(path)
        if found is None:
            self._report("gone", path, "somebody has removed it")
        elif found == recorded:
            self._report("removed", path)
            self._unlink(path)
        else:
            self._report("kept", path, "it has been changed")

    def _report(self, verb: str, path: str, why: str = "") -> None:
        """Report what is done with a file."""
        fact = verb in ("unchanged", "gone")
        self._touched = self._touched or verb in ("installed", "updated", "removed")
        self._say(f"{'would have ' if self._dry_run and not fact else ''}{verb} {path}{f': {why}' if why else ''}")

    def _digest(self, path: str) -> str | None:
        """SHA-256 of a file; None if there is none; a word that is no SHA-256 for a link, which is never installed."""
        if os.path.islink(self._root + path):
            return "a link"
        try:
            with open(self._root + path, "rb") as file:
                return _digest(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise XenbusdError(f"cannot read {self._root + path}: {error.strerror}") from error

    def _write(self, path: str, data: bytes, mode: int) -> None:
        """Write a file completely, or not at all."""
        if self._dry_run:
            return
        place = self._root + path
        part = f"{place}.xenbusd-part"
        try:
            _make_folder(os.path.dirname(place))
            with open(part, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
            os.replace(part, place)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise XenbusdError(f"cannot write {place}: {error.strerror}") from error

    def _unlink(self, path: str) -> None:
        if self._dry_run:
            return
        try:
            os.unlink(self._root + path)
        except OSError as error:
            raise XenbusdError(f"cannot remove {self._root + path}: {error.strerror}") from error

    def _remove_folder(self, path: str) -> None:
        """Remove a folder of `OWN_FOLDERS`, unless there is a file in it."""
        if self._dry_run or not os.path.isdir(self._root + path):
            return
        try:
            os.rmdir(self._root + path)
        except OSError:
            self._report("kept", path, "there are files in it that are not the installation's")

    def _read_record(self) -> dict[str, dict[str, str]]:
        place = self._root + RECORD
        try:
            with open(place, encoding="utf-8") as file:
                record = json.load(file)
            return {str(role): {str(path): str(digest) for path, digest in of.items()} for role, of in record.items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise UsageError(f"cannot read {place}: {error.strerror}; run this as root") from error
        except (ValueError, AttributeError) as error:
            raise UsageError(
                f"{place} is damaged: {error}; remove it and install again: files that have been changed are kept"
            ) from error

    def _write_record(self) -> None:
        record: Mapping[str, Mapping[str, str]] = {role: of for role, of in self._record.items() if of}
        if record:
            self._write(RECORD, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n", 0o644)
        elif os.path.exists(self._root + RECORD):
            self._unlink(RECORD)


def _make_folder(path: str) -> None:
    """Make a folder and its parents; everybody may enter them, whatever the umask is."""
    if os.path.isdir(path):
        return
    _make_folder(os.path.dirname(path))
    os.mkdir(path)
    os.chmod(path, 0o755)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

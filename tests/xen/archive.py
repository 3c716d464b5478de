"""cpio archives in the form that the kernel unpacks as an initramfs. Several may stand one after the other in one file.

Source: linux/Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

_MAGIC = b"070701"
_END = "TRAILER!!!"


class Archive:
    """Files, folders and links for an initramfs, all of them root's. Folders above a path are made with it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._paths: set[str] = {"."}

    def folder(self, path: str) -> None:
        """Make a folder, once."""
        if path in self._paths:
            return
        self._put(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """Put a file there. The first one at a path stays."""
        if path not in self._paths:
            self._put(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, path: str, target: str) -> None:
        """Put a symbolic link there. The first one at a path stays."""
        if path not in self._paths:
            self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def copy(self, source: Path, path: str) -> None:
        """Copy a file, or what a link leads to."""
        self.file(path, source.read_bytes(), executable=bool(source.stat().st_mode & 0o100))

    def copy_tree(self, source: Path, path: str, *, without: frozenset[str] = frozenset()) -> None:
        """Copy a folder with everything in it but what has a name in `without`; links stay links."""
        for entry in sorted(source.iterdir()):
            inside = f"{path}/{entry.name}"
            if entry.name in without:
                continue
            if entry.is_symlink():
                self.link(inside, str(entry.readlink()))
            elif entry.is_dir():
                self.copy_tree(entry, inside, without=without)
            elif entry.is_file():
                self.copy(entry, inside)

    def write(self, path: Path) -> Path:
        """Write the archive to a file, padded so that another may follow it. Return the file."""
        whole = b"".join([*self._parts, _record(0, _END, 0, b"")])
        path.write_bytes(whole + bytes(-len(whole) % 512))
        return path

    def _put(self, path: str, mode: int, data: bytes) -> None:
        above = str(PurePosixPath(path).parent)
        if above not in self._paths:
            self.folder(above)
        self._paths.add(path)
        self._parts.append(_record(len(self._parts) + 1, path, mode, data))


def _record(inode: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)

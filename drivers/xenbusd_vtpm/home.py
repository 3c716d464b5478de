"""A TPM's home: the folder with its state, which is made once, whole or not at all, and with a lock for one user.

<state_dir>/<uuid>/      accessible to the daemon alone
    lock                 locked by the daemon, and by its swtpm for as long as that lives
    encrypted            the path of the key file; absent if the TPM is not encrypted
    state/               swtpm's own files, accessible to swtpm's user alone
    new/                 where a TPM is being made; only a crash leaves it behind
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import pwd
import re
import shutil
from collections.abc import Iterator

from xenbusd.api import Child, ResourceError, once_unlocked
from xenbusd_vtpm.protocol import TPM_1_2, TPM_2_0, VERSIONS, Version
from xenbusd_vtpm.settings import Settings

SETUP_S = 120.0
"""The longest that `swtpm_setup` may take; usually it takes less than a second."""

FILES = {"tpm2-00.permall": TPM_2_0, "tpm-00.permall": TPM_1_2}
"""swtpm's file for the permanent state, by which the version of a TPM is known (swtpm, src/swtpm/swtpm_nvstore.c)."""

VOLATILE = ("tpm2-00.volatilestate", "tpm-00.volatilestate")
"""swtpm's files for the volatile state: registers, sessions, loaded keys."""

LOCK_RETRY_S = 0.02
"""Between attempts to lock a TPM that is still in use."""

CIPHER = "aes-256-cbc"

NOT_FOUND = 127
"""setpriv's exit status if the program that it is to run does not exist."""

INSTALL = "install it: apt-get install swtpm swtpm-tools"


class Home:
    """One TPM's folder.

    Args:
        settings: from the configuration file.
        uuid: as `parse_uuid` returns it.
    """

    def __init__(self, settings: Settings, uuid: str) -> None:
        self._settings = settings
        self.uuid = uuid
        self.path = os.path.join(settings.state_dir, uuid)
        self.lock_fd = -1
        """The locked file, which swtpm inherits; -1 while it is not locked."""

    @property
    def state(self) -> str:
        """The folder that swtpm works in."""
        return os.path.join(self.path, "state")

    @property
    def wrapper(self) -> list[str]:
        """The command, setpriv, that starts swtpm's programs: it changes the user, and has the kernel kill the program
        when the daemon dies. swtpm itself would not end: if the daemon is killed during a command, swtpm spins for
        ever."""
        argv = ["setpriv", "--pdeathsig", "KILL"]
        if self._settings.user is not None:
            user = pwd.getpwnam(self._settings.user)
            argv += ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
        return [*argv, "--"]

    def forget_volatile(self) -> None:
        """Remove the stored volatile state, as loss of power does. swtpm 0.7.1 has a flag for this, but loads the state
        first."""
        for name in VOLATILE:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.state, name))

    async def open(self, patience_s: float) -> None:
        """Make the folder if it does not exist, and lock it.

        Args:
            patience_s: seconds to wait for the lock, which the previous daemon's swtpm may hold until it has ended.

        Raises:
            ResourceError: another device uses this TPM.
            OSError: the folder cannot be made.
        """
        os.makedirs(self._settings.state_dir, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        self.close()
        self.lock_fd = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await once_unlocked(self._lock, patience_s=patience_s, interval_s=LOCK_RETRY_S)
        except ResourceError:
            self.close()
            raise

    async def _lock(self) -> None:
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"the TPM {self.uuid} is in use by another device: a uuid is for one guest at a time", errno.EBUSY
            ) from None

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def existing(self) -> Version | None:
        """Return the version of the TPM in this folder; None: none has been made yet."""
        found = [version for name, version in FILES.items() if os.path.exists(os.path.join(self.state, name))]
        return found[0] if found else None

    async def prepare(self, asked: str | None) -> Version:
        """Make the TPM, at its first use.

        Args:
            asked: the version that it must have; None: any, or for a new TPM the one in the settings.

        Returns:
            Its version.

        Raises:
            ResourceError: it was made as another version, or cannot be made.
        """
        there = self.existing()
        asked = asked or self._settings.versions.get(self.uuid)
        if there is None:
            version = VERSIONS[asked or self._settings.version]
            await self._make(version)
            return version
        if asked is not None and asked != there.name:
            raise ResourceError(
                f"the TPM {self.uuid} was made as version {there.name}, but {asked} is asked for: ask for "
                f"{there.name}, choose another uuid, or remove {self.path} with all its secrets",
                errno.EINVAL,
            )
        return there

    @contextlib.contextmanager
    def key(self) -> Iterator[int | None]:
        """In the block, have the key file open: its descriptor, for a child to inherit; None if the TPM has no key.

        Raises:
            ResourceError: the file cannot be read, or holds no key.
        """
        try:
            with open(os.path.join(self.path, "encrypted")) as file:
                path = file.read()
        except FileNotFoundError:
            yield None
            return
        try:
            with open(path, "rb") as key:
                digits = key.read(4096).strip()
                if not re.fullmatch(rb"[0-9A-Fa-f]{64}", digits):
                    raise ResourceError(
                        f"{path} holds no key: it should be 64 hexadecimal digits (openssl rand -hex 32)", errno.EINVAL
                    )
                key.seek(0)
                yield key.fileno()
        except OSError as error:
            raise ResourceError(
                f"{path}, the key of the TPM {self.uuid}, cannot be read: {error.strerror}", error.errno or errno.EIO
            ) from error

    async def _make(self, version: Version) -> None:
        """Have swtpm_setup make the TPM in a folder `new`, and rename that to `state` once it is whole and on disk."""
        new = os.path.join(self.path, "new")
        shutil.rmtree(new, ignore_errors=True)
        os.mkdir(new, 0o700)
        if self._settings.user is not None:
            user = pwd.getpwnam(self._settings.user)
            os.chown(new, user.pw_uid, user.pw_gid)
        self._note_key()
        argv = [*self.wrapper, "swtpm_setup", "--tpmstate", ".", *(["--tpm2"] if version is TPM_2_0 else [])]
        with self.key() as key:
            if key is not None:
                argv += ["--keyfile-fd", str(key), "--cipher", CIPHER]
            try:
                child = Child(argv, cwd=new, pass_fds=[self.lock_fd, *([] if key is None else [key])])
            except OSError as error:
                raise ResourceError(
                    f"swtpm_setup cannot be run: {error.strerror}; {INSTALL}", error.errno or errno.EIO
                ) from error
            await child.finish(SETUP_S)
        if child.status == NOT_FOUND:
            raise ResourceError(f"there is no swtpm_setup; {INSTALL}", errno.ENOPKG)
        if child.status != 0:
            raise ResourceError(f"swtpm_setup ended with {child.status}: {last_words(child)}", errno.EIO)
        await asyncio.to_thread(_move, new, self.state)

    def _note_key(self) -> None:
        """Record the path of the key file: a TPM keeps its key when the settings change."""
        path = os.path.join(self.path, "encrypted")
        if self._settings.key_file is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        else:
            with open(path, "w") as file:
                file.write(self._settings.key_file)


def last_words(child: Child) -> str:
    """Return the end of a program's output on one line, for an error message."""
    return "; ".join(child.last_words.split("\n")) or "no output"


def _move(new: str, place: str) -> None:
    """Write a folder and its files to the disk, then rename it, and write the renaming, too."""
    for path in (*(entry.path for entry in os.scandir(new)), new):
        _sync(path)
    shutil.rmtree(place, ignore_errors=True)  # `existing` found no TPM in it
    os.rename(new, place)
    _sync(os.path.dirname(place))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

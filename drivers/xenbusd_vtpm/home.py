"""A TPM's folder: its state, made once, whole or not at all; its version; a lock, for one user at a time.

<state_dir>/<uuid>/      ours alone
    lock                 held by us, and by the swtpm that we started for as long as it lives
    encrypted            the path of its key's file; without this file it is not encrypted
    state/               swtpm's own files, and its user's alone
    new/                 what a TPM is made in; left only by a crash
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import re
import shutil
import time
from collections.abc import Iterator

from xenbusd.api import Child, XenbusdError
from xenbusd_vtpm.protocol import TPM_1_2, TPM_2_0, VERSIONS, Version
from xenbusd_vtpm.settings import Settings

SETUP_S = 120.0
"""How long `swtpm_setup` may take; on a machine without haste it is less than one second."""

FILES = {"tpm2-00.permall": TPM_2_0, "tpm-00.permall": TPM_1_2}
"""By which file of swtpm's one sees what kind of TPM it is (swtpm, src/swtpm/swtpm_nvstore.c)."""

VOLATILE = ("tpm2-00.volatilestate", "tpm-00.volatilestate")

CIPHER = "aes-256-cbc"

NOT_FOUND = 127
"""setpriv's status when there is no such program."""

INSTALL = "install it: apt-get install swtpm swtpm-tools"


class TpmError(XenbusdError):
    """A TPM cannot be made, opened or run; the message is for the administrator."""


class Home:
    """One TPM's folder.

    Args:
        settings: of the host.
        uuid: checked.
    """

    def __init__(self, settings: Settings, uuid: str) -> None:
        self._settings = settings
        self.uuid = uuid
        self.path = os.path.join(settings.state_dir, uuid)
        self.lock_fd = -1
        """While we hold the lock; for swtpm to inherit."""

    @property
    def state(self) -> str:
        """The folder that swtpm works in."""
        return os.path.join(self.path, "state")

    @property
    def wrapper(self) -> list[str]:
        """What a program of swtpm's is started with: it changes the user, and has the program die with us. swtpm does
        not see to that itself: killed under a command, we would leave one that turns round for ever."""
        argv = ["setpriv", "--pdeathsig", "KILL"]
        if self._settings.user is not None:
            user = pwd.getpwnam(self._settings.user)
            argv += ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
        return [*argv, "--"]

    def forget_volatile(self) -> None:
        """Remove the volatile state that was stored, as loss of power does. swtpm 0.7.1, asked to do that itself, loads
        it first."""
        for name in VOLATILE:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.state, name))

    async def open(self, patience_s: float) -> None:
        """Make the folder, if need be, and take the lock.

        Args:
            patience_s: how long the swtpm of a process before us may take to end.

        Raises:
            TpmError: another device uses this TPM.
            OSError: the folder cannot be made.
        """
        os.makedirs(self._settings.state_dir, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        self.close()
        self.lock_fd = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + patience_s
        while not self._try_lock():
            if time.monotonic() >= deadline:
                self.close()
                raise TpmError(f"the TPM {self.uuid} is in use by another device: a uuid is for one guest at a time")
            await asyncio.sleep(0.02)  # nobody tells of a lock that is given back

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def existing(self) -> Version | None:
        """The version of the TPM that is there; None: there is none yet."""
        found = [version for name, version in FILES.items() if os.path.exists(os.path.join(self.state, name))]
        return found[0] if found else None

    async def prepare(self, asked: str | None) -> Version:
        """Make the TPM at its first use.

        Args:
            asked: a version that it must be; None: what the settings say.

        Returns:
            What it is.

        Raises:
            TpmError: it is there in another version, or cannot be made.
        """
        there = self.existing()
        asked = asked or self._settings.versions.get(self.uuid)
        if there is None:
            version = VERSIONS[asked or self._settings.version]
            await self._make(version)
            return version
        if asked is not None and asked != there.name:
            raise TpmError(
                f"the TPM {self.uuid} was made as version {there.name}, but {asked} is asked for: ask for "
                f"{there.name}, choose another uuid, or remove {self.path} with all its secrets"
            )
        return there

    @contextlib.contextmanager
    def key(self) -> Iterator[int | None]:
        """Open the key's file: a descriptor to be inherited, or None for a TPM that is not encrypted.

        Raises:
            TpmError: the file cannot be read, or holds no key.
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
                    raise TpmError(f"{path} holds no key: it should be 64 hexadecimal digits (openssl rand -hex 32)")
                key.seek(0)
                yield key.fileno()
        except OSError as error:
            raise TpmError(f"{path}, the key of the TPM {self.uuid}, cannot be read: {error.strerror}") from error

    async def _make(self, version: Version) -> None:
        """Have swtpm_setup make the TPM beside its place, and move it there once it is whole and on the disk."""
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
                raise TpmError(f"swtpm_setup cannot be run: {error.strerror}; {INSTALL}") from error
            await child.finish(SETUP_S)
        if child.status == NOT_FOUND:
            raise TpmError(f"there is no swtpm_setup; {INSTALL}")
        if child.status != 0:
            raise TpmError(f"swtpm_setup ended with {child.status}: {last_words(child)}")
        await asyncio.to_thread(_move, new, self.state)

    def _note_key(self) -> None:
        """Write down where the key is: a TPM keeps its key when the settings change."""
        path = os.path.join(self.path, "encrypted")
        if self._settings.key_file is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        else:
            with open(path, "w") as file:
                file.write(self._settings.key_file)


def last_words(child: Child) -> str:
    """The end of a program's output, on one line."""
    return "; ".join(child.last_words.split("\n")) or "no output"


def _move(new: str, place: str) -> None:
    """Rename a folder once all that is in it is on the disk; then the renaming, too."""
    for path in (*(entry.path for entry in os.scandir(new)), new):
        _sync(path)
    shutil.rmtree(place, ignore_errors=True)  # there is no TPM in it
    os.rename(new, place)
    _sync(os.path.dirname(place))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Atomic writes of files, and folders locked to one writing process."""

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError, notice_once

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

LOCK = ".lock"
# errors of network and FUSE file systems for calls that they lack
NOT_THERE = {
    *(errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES),
    *(errno.ENOTTY, errno.EBADF, errno.ENOLCK),
}
_held: set[Path] = set()  # folders that this process has locked


class InUse(InputError):
    """Another process holds a folder's lock."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that is renamed to `path` when the `with` succeeds, and removed when it fails.

    Its bytes are on the disk before the rename, and the rename is on the disk when this returns. A
    file system that cannot sync is reported once. A link stays a link. A device or a pipe is
    written in place: a rename would put a file where it was.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, "wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            _try("sync files: a crash of the machine may lose what was saved", os.fsync, descriptor)
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask  # mkstemp's 0600 is for secrets
        _try("set who may read a file: yours alone may read it", os.chmod, temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _try("sync folders: a crash of the machine may lose what was saved", sync_folder, path.parent)


def _try(what: str, call: Callable[..., object], *args: object) -> None:
    """Runs call(*args); a file system that does not support it is reported once."""
    try:
        call(*args)
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        notice_once(f"warning: this file system cannot {what} ({error.strerror})")


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable, where the system supports it."""
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes. The lock ends with the process, however that ends.

    The process that holds the lock may take it again. A file system without locks is reported once,
    and then nothing is locked.

    Args:
        folder: an existing folder.

    Raises:
        InUse: another process holds the lock; the text has its number and machine.
        OSError: the folder cannot be written.
    """
    place = folder.resolve()
    if place in _held:
        yield
        return
    path = place / LOCK
    descriptor = _open_locked(path, folder)
    _held.add(place)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        _held.discard(place)
        path.unlink(missing_ok=True)  # still locked: who has opened it sees it removed
        os.close(descriptor)


def _open_locked(path: Path, folder: Path) -> int:
    """Opens the lock file, and locks it where the file system has locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, folder)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous holder removed it before we locked it


def _lock(descriptor: int, folder: Path) -> None:
    warning = "lock files: see to it that no other process writes the same run"
    if fcntl is None:
        notice_once(f"warning: this system cannot {warning}")
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            raise InUse(f"{folder} is in use: {holder} writes it") from error
        if error.errno not in NOT_THERE:
            raise
        notice_once(f"warning: this file system cannot {warning} ({error.strerror})")


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Removes temporary files that killed processes left for these names (patterns). `folder` must
    be locked: otherwise another process's file may be removed."""
    for name in names:
        for left in folder.glob(f".{name}.*"):
            left.unlink(missing_ok=True)

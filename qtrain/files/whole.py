"""Files that are whole or not there, and no pipes; folders that one process at a time writes to."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: the file of a folder by which it is locked
LOCK = ".lock"
#: Matches the unfinished files that a killed process leaves.
UNFINISHED = ".qtrain-*.tmp"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace `path` by what `write` puts into a file; a crash leaves the old file whole.

    FileNotFoundError, with the folder, where there is none for it.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to write to", str(path.parent))
    temporary = path.with_name(UNFINISHED.replace("*", secrets.token_hex(8)))
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself lasts only once the folder is on the disk
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def opened(path: str | os.PathLike[str], *, flags: int = os.O_RDONLY) -> IO[bytes]:
    """A regular file, open for reading, or for writing where `flags`, those of `os.open`, say so.

    OSError for a pipe, a socket, a device or a folder: none is waited for, no device is touched.
    """
    for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):  # none matters to a regular file
        flags |= getattr(os, name, 0)
    with suppress(FileNotFoundError):  # where it is to be made
        _check_regular(os.stat(path).st_mode, path)
    descriptor = os.open(path, flags, 0o666)
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)  # another may have taken its place
        return os.fdopen(descriptor, "ab" if flags & os.O_APPEND else "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no file", os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All that is in a regular file; OSError for anything else: see `opened`."""
    with opened(path) as file:
        return file.read()


@contextmanager
def text_in(path: Path, what: str) -> Iterator[str]:
    """A file's text.  ValueError where there is no such file, `what` it is for, and with the path
    before it for an error of what is made of the text within."""
    if not path.is_file():
        raise ValueError(f"{what}: {path} is no file")
    try:
        yield read_bytes(path).decode("utf-8-sig")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def there(path: Path) -> bool:
    """Whether there is such a file; ValueError where something else is in its place."""
    if not os.path.lexists(path):
        return False
    if not path.is_file():
        raise ValueError(f"{path}: is no file, or a link to none; remove it")
    return True


@contextmanager
def lock(folder: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes that ask out of `folder`; ValueError where one was there before.

    The system drops the lock when the process ends, however it ends; where there are no locks, a
    remark goes to `say`.
    """
    with opened(folder / LOCK, flags=os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder}: another process is running this run; wait for it or stop it, or give "
                "another --name"
            ) from error
        except OSError as error:
            say(f"{folder}: cannot be locked ({error.strerror}); start no second run in it")
        yield

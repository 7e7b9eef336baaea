"""Files that are whole or not there, and folders that one process at a time writes into."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Matches the unfinished files that a killed process leaves.
UNFINISHED = ".qtrain-*.tmp"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace `path` by what `write` puts into a file; a crash leaves the old file whole."""
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


@contextmanager
def lock(folder: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes that ask out of `folder`; ValueError where one was there before.

    The system drops the lock when the process ends, however it ends; where there are no locks, a
    remark goes to `say`.
    """
    with open(folder / ".lock", "ab") as file:
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

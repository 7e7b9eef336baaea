"""Metrics as JSON lines, in a file whose length a checkpoint can record and a resume restore."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import plain_json
from ..files.whole import read_bytes
from .checkpoint import CheckpointError
from .loggers.logger import Loggers

#: What every line of a kind holds, beside its branch and the integer that counts; numbers are null
#: where they were not finite.
EPOCH_NUMBERS = ("epoch", "train_loss", "test_loss", "test_accuracy", "seconds")
#: all of a line of kind "epoch" but for what hooks add
EPOCH = ("kind", "branch", "step", *EPOCH_NUMBERS, "test_seconds", "crc")
STEP_NUMBERS = ("step", "loss", "grad_norm")
_NUMBERS = {"epoch": EPOCH_NUMBERS, "step": STEP_NUMBERS}


class MetricsLog:
    """Appends one JSON object per line, with a checksum: see `plain_json`.

    The file is first cut to `keep` bytes, so that lines written after a checkpoint are neither
    lost nor doubled when the run resumes there: see `check_metrics`.  Loggers are given each line.
    """

    def __init__(self, path: Path, *, keep: int = 0, loggers: Loggers | None = None) -> None:
        self._checksum = check_metrics(path, keep)
        self._path, self._loggers = path, loggers
        self._file = open(path, "ab")
        self._file.truncate(keep)
        self._file.seek(keep)

    def write(self, /, **values: Any) -> None:
        """Append one line; NaN and infinities become null, as JSON has none."""
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        try:
            line, self._checksum = plain_json.line(plain, self._checksum)
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._path}: cannot be written ({error.strerror or error}); the last "
                "checkpoint, if any, is whole: make room, then continue with --resume"
            ) from error
        self.tell(**plain)

    def tell(self, /, **values: Any) -> None:
        """Give a line to the loggers alone."""
        if self._loggers is not None:
            self._loggers.log(values)

    def position(self) -> int:
        """Bytes written so far, all of them on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file, and the loggers."""
        with suppress(OSError):  # what the disk did not take was an error of `write` before
            self._file.close()
        if self._loggers is not None:
            self._loggers.close()


def check_metrics(path: Path, keep: int) -> int:
    """The checksum of the file's first `keep` bytes; CheckpointError unless they are whole lines of
    metrics, as they were written."""
    kept = read_bytes(path)[:keep] if path.exists() else b""
    if len(kept) < keep:
        raise CheckpointError(
            f"{path}: got {len(kept)} bytes, but the checkpoint was written after {keep}; "
            "the file was changed since. Restore it, or start again with --overwrite"
        )
    try:
        found, checksum = plain_json.lines(kept)
        if kept[-1:] not in (b"", b"\n") or not all(map(is_metrics, found)):
            raise ValueError("no lines of metrics")
    except ValueError as error:
        raise CheckpointError(
            f"{path}: damaged ({error}) within the {keep} bytes that count. Restore it, or start "
            "again with --overwrite"
        ) from error
    return checksum


def is_metrics(line: object) -> bool:
    """Whether this is a line of metrics: of a kind, and with all that the kind holds."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    names = _NUMBERS.get(line["kind"])
    if names is None:
        return True
    count, *values = (line.get(name, "") for name in names)
    accuracy = line.get("test_accuracy")
    return (
        isinstance(line.get("branch"), str)
        and type(count) is int
        and 0 <= count < 2**53
        and all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in values)
        and (line["kind"] == "step" or accuracy is None or 0 <= accuracy <= 1)
    )


def read_metrics(path: Path, *, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file, those of one kind where given; ValueError for damaged ones."""
    found, _ = plain_json.lines(read_bytes(path))
    return [line for line in found if kind is None or line["kind"] == kind]


def number(value: Any) -> float:
    """A figure of a metrics line, where null stands for what is not finite, as NaN.

    TypeError or ValueError for what is no number.
    """
    return math.nan if value is None else float(value)

"""Metrics as JSON lines, in a file whose length a checkpoint can record and a resume restore."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends one JSON object per line.

    The file is first cut to `keep` bytes, so that lines written after a checkpoint are neither
    lost nor doubled when the run resumes there. ValueError where the file is shorter than that.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size < keep:
            raise ValueError(
                f"{path}: got {size} bytes, but the checkpoint was written after {keep}; "
                "the file was changed since. Restore it, or start again with --overwrite"
            )
        self._file = open(path, "ab")
        self._file.truncate(keep)
        self._file.seek(keep)

    def write(self, **values: Any) -> None:
        """Append one line; NaN and infinities become null, as JSON has none."""
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes written so far, all of them on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path, *, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file, those of one kind where given."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if kind is None or line["kind"] == kind]

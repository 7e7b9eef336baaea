"""What is said while kernels are compiled."""

from __future__ import annotations

import logging
import time

#: seconds between remarks on kernels that are compiled
_REMARK = 5.0


class Remarks:
    """Says that kernels are compiled, and from time to time how many were."""

    def __init__(self) -> None:
        self._count, self._said = 0, time.monotonic()
        self._say(
            "quantizers: kernels are compiled for this machine, which takes seconds each and is "
            "kept on disk for later processes"
        )

    def add(self) -> None:
        self._count += 1
        if time.monotonic() - self._said >= _REMARK:
            self._say(f"quantizers: {self._count} kernels compiled")

    def _say(self, text: str) -> None:
        logging.getLogger("quantizers").warning(text)
        self._said = time.monotonic()

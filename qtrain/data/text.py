"""Text, a character a token: files as they lie, cut into windows of equal length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files.whole import read_bytes
from . import draws
from .dataset import DataSet
from .errors import DataError, check_range, reason
from .unpack import ERRORS, unpacked

CONTEXT = 128  # characters; the default
_SUFFIXES = (".txt", ".txt.gz")
#: An unpacked text is at most so many times as long as its file, or so many bytes.  Prose is 2 to 5
#: times as long (of gzip: Bell, Witten, Cleary 1990), tables and logs some 20 times.
_RATIO, _SHORT = 50, 2**26
_NEED = f"need one or more UTF-8 files ({', '.join(_SUFFIXES)})"


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSplit:
    """Windows of `context` characters that follow one another; the target is the next character.

    tokens    (L,) int32, the character at each place as its number below num_classes
    offsets   at how many places the first window may start: an epoch of training draws one of
              them, evaluation starts at place 0

    DataError for other tokens and where they hold no window.
    """

    tokens: Tensor
    num_classes: int
    context: int
    offsets: int = 1
    source: str = "text"
    workers: ClassVar[int] = 0  # gathering from memory needs no process

    def __post_init__(self) -> None:
        if self.tokens.dtype != torch.int32 or self.tokens.dim() != 1:
            got = f"{tuple(self.tokens.shape)} {self.tokens.dtype}"
            raise DataError(f"{self.source}: tokens are {got}, need (L,) int32")
        if len(self) < 1:
            raise DataError(
                f"{self.source}: {len(self.tokens)} characters hold no window of {self.context} "
                f"and the next character at {self.offsets} offsets; need a longer text or a "
                "smaller context"
            )
        check_range(self.tokens, self.num_classes, self.source, "token")

    @property
    def sizes(self) -> dict[str, int]:
        """What a model is built from: num_classes and context."""
        return {"num_classes": self.num_classes, "context": self.context}

    @property
    def truth(self) -> Tensor:
        """The text itself, (L,) int32: each character is the target of those before it."""
        return self.tokens

    def __len__(self) -> int:
        return (len(self.tokens) - self.offsets) // self.context

    def to(self, device: torch.device | str) -> TextSplit:
        """The same split on a device; its batches are then made there."""
        return replace(self, tokens=self.tokens.to(device))

    def read(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        """The windows `indices` (N,) -> characters and the next ones, both (N, context) int64."""
        first = indices * self.context
        if augment:
            whole = np.zeros(1, dtype=np.int64)  # one draw for the epoch
            purpose = draws.OFFSET
            first += draws.below(self.offsets, whole, seed=seed, epoch=epoch, purpose=purpose)
        places = torch.from_numpy(first[:, None] + np.arange(self.context)).to(self.tokens.device)
        return self.tokens[places].long(), self.tokens[places + 1].long()


def load_text(place: Path, *, context: int = CONTEXT) -> DataSet:
    """The text of a folder's files, in sorted order and joined, or of one file.

    The characters that occur are the classes, in the order of their code points.  The last tenth
    is the test part; training windows start at one of `context` offsets.  DataError where there is
    no text, where it cannot be decoded or is too short for two test windows.
    """
    text = "".join(_read(path) for path in _files(place))
    least = 10 * (2 * context + 1)  # a tenth of it holds two windows, which an interval needs
    if len(text) < least:
        raise DataError(
            f"text: {place} holds {len(text)} characters, need at least {least} for a context of "
            f"{context}; add text or choose a smaller context"
        )
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    characters, numbers = np.unique(points, return_inverse=True)
    tokens = torch.from_numpy(numbers.astype(np.int32))
    cut = len(tokens) - len(tokens) // 10
    train, test = (
        TextSplit(
            tokens=part,
            num_classes=len(characters),
            context=context,
            offsets=offsets,
            source=f"text ({name})",
        )
        for name, part, offsets in (("train", tokens[:cut], context), ("test", tokens[cut:], 1))
    )
    return DataSet(name="text", train=train, test=test, classes=tuple(map(chr, characters)))


def _files(place: Path) -> list[Path]:
    """The file itself, or the text files of a folder, sorted by name."""
    if not place.is_dir():
        if not place.name.lower().endswith(_SUFFIXES):
            raise DataError(f"text: {place} is no text file by its name; {_NEED}")
        return [place]
    found = sorted(f for f in place.iterdir() if f.name.lower().endswith(_SUFFIXES))
    found = [f for f in found if not f.name.startswith(".")]
    if not found:
        raise DataError(f"text: {place} holds no text; {_NEED}")
    return found


def _read(path: Path) -> str:
    """The characters of a file, line ends as they are; DataError where it holds none."""
    try:
        if path.suffix.lower() == ".gz":
            most = max(_RATIO * path.stat().st_size, _SHORT)
            with unpacked(path, most) as file:
                content = file.read(most + 1)
        else:
            content = read_bytes(path)
    except ERRORS as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); replace or remove it") from None
    try:
        text = content.decode("utf-8-sig")  # some editors put a mark first, which is no text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it, e.g. with "
            "iconv -t UTF-8, or remove it"
        ) from None
    if not text:
        raise DataError(f"{path}: is empty; fill or remove it")
    return text

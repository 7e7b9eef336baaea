"""An einsum taken apart into products of two operands."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ...products.plan import constant

LETTERS = string.ascii_letters


class Step(NamedTuple):
    """The product of two operands, of which no axis has a letter twice.

    a, b, result   their letters
    batch          in both, and kept;  summed: in both, and not kept
    left, right    in one, and kept
    """

    a: str
    b: str
    result: str
    batch: str
    summed: str
    left: str
    right: str

    @property
    def equation(self) -> str:
        return f"{self.a},{self.b}->{self.result}"

    def matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The operands as (batch, left, summed) and (batch, summed, right)."""
        sizes = self._sizes(a, b)
        first = _matrix(a, self.a, (self.batch, self.left, self.summed), sizes)
        return first, _matrix(b, self.b, (self.batch, self.summed, self.right), sizes)

    def restored(self, product: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The result, of (batch, left, right)."""
        sizes, letters = self._sizes(a, b), self.batch + self.left + self.right
        found = product.reshape([sizes[x] for x in letters])
        return found.permute([letters.index(x) for x in self.result])

    def _sizes(self, a: Tensor, b: Tensor) -> dict[str, int]:
        """Of each letter; an axis of size 1 is as long as the other's."""
        sizes = dict(zip(self.a, a.shape, strict=True))
        for letter, size in zip(self.b, b.shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size) if size else 0
        return sizes


def _matrix(x: Tensor, own: str, parts: tuple[str, str, str], sizes: dict[str, int]) -> Tensor:
    """x with one axis for each part; what is in none is summed."""
    wanted = "".join(parts)
    idle = [axis for axis, letter in enumerate(own) if letter not in wanted]
    if idle:
        x = x.sum(idle)
        own = "".join(letter for letter in own if letter in wanted)
    x = x.permute([own.index(letter) for letter in wanted])
    x = x.expand([sizes[letter] for letter in wanted])
    return x.reshape([math.prod([sizes[letter] for letter in part]) for part in parts])


@constant
def steps(equation: str, dims: tuple[int, ...]) -> Sequence[Step] | None:
    """The products of an einsum of operands with so many axes, from the left to the right; None
    where it is malformed or an operand has a letter twice."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    operands = given.split(",")
    if len(operands) != len(dims) or given.count("...") > len(dims):
        return None
    unused = [x for x in LETTERS if x not in equation]
    ranks = [n - len(own.replace("...", "")) for own, n in zip(operands, dims, strict=True)]
    if min(ranks) < 0 or any(
        n and "..." not in own for own, n in zip(operands, ranks, strict=True)
    ):
        return None
    dots = unused[: max(ranks)]
    named = [
        own.replace("...", "".join(dots[len(dots) - n :]))
        for own, n in zip(operands, ranks, strict=True)
    ]
    if not arrow:
        letters = given.replace(",", "").replace("...", "")
        result = "..." + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    result = result.replace("...", "".join(dots))
    every = [*named, result]
    if any(len(set(own)) < len(own) or (not own.isalpha() and own) for own in every):
        return None
    found, first = [], named[0]
    for number, other in enumerate(named[1:], 1):
        later = set("".join(named[number + 1 :])) | set(result)
        both = [x for x in first if x in other]
        batch = "".join(x for x in both if x in later)
        left = "".join(x for x in first if x not in other and x in later)
        right = "".join(x for x in other if x not in first and x in later)
        kept = result if number == len(named) - 1 else batch + left + right
        if sorted(kept) != sorted(batch + left + right):
            return None
        summed = "".join(x for x in both if x not in later)
        found.append(Step(first, other, kept, batch, summed, left, right))
        first = kept
    return tuple(found)

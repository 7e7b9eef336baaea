"""Sums in a floating-point format, rounded after every addition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import FloatFormat
from ..noise import fold, random_bits
from ..rounding import round_to_float
from .exactness import exact_sum, odd_sum
from .models import Sequential


def running_sum(
    a: Tensor, b: Tensor, accumulator: Sequential, start: Tensor, key: Tensor | None, first: int
) -> Tensor:
    """fp64 (..., K), (..., K), (...) -> (...), `Sequential`'s."""
    own = _Sum(accumulator, key, first)
    products, count = a * b, a.shape[-1]  # exact
    if accumulator.product is not None:
        each = [own.rounded(x, 2 * k + 1, accumulator.product) for k, x in _terms(products)]
        products = torch.stack(each, -1) if each else products
    start = round_to_float(start, accumulator.format)
    if accumulator.chunk is None:
        return own.added(start, _terms(products))
    parts = []
    for number, chunk in enumerate(products.split(accumulator.chunk, -1) if count else ()):
        number *= accumulator.chunk
        if accumulator.inside == "exact":
            parts.append(own.rounded(exact_sum(chunk), 2 * number, accumulator.format))
        else:
            parts.append(own.added(torch.zeros_like(start), _terms(chunk, number)))
    return own.added(start, enumerate(parts, count))


def _terms(products: Tensor, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    return enumerate(products.unbind(-1), first)


@dataclass(frozen=True)
class _Sum:
    accumulator: Sequential
    key: Tensor | None
    first: int

    def rounded(self, x: Tensor, number: int, format: FloatFormat) -> Tensor:
        """To the format, by the random bits of so many an addition."""
        rounding, bits = self.accumulator.rounding, None
        if rounding.mode == "stochastic":
            if self.key is None:
                raise ValueError(f"key: got None; {self.accumulator} needs random bits")
            bits = random_bits(fold(self.key, number), x.shape, start=self.first)
        return round_to_float(x, format, rounding, bits)

    def added(self, total: Tensor, terms: Iterable[tuple[int, Tensor]]) -> Tensor:
        """Terms with their numbers, one after the other."""
        format, lost = self.accumulator.format, torch.zeros_like(total)
        for number, term in terms:
            if not self.accumulator.compensated:
                total = self.rounded(odd_sum(total, term), 2 * number, format)
                continue
            term = self.rounded(odd_sum(term, -lost), number, format)
            grown = self.rounded(odd_sum(total, term), number, format)
            gained = self.rounded(odd_sum(grown, -total), number, format)
            lost = self.rounded(odd_sum(gained, -term), number, format)
            total = grown
        return total

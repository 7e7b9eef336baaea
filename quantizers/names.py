"""Formats and roundings by name, in the fields that take them."""

from __future__ import annotations

from collections.abc import Callable

from . import formats, rounding

_GET: dict[str, Callable[[str], object]] = {
    "format": formats.get, "sum": formats.get_sum, "rounding": rounding.get
}  # fmt: skip


def take_names(owner: object, place: str = "", **kinds: str) -> None:
    """Replace names in the fields of a frozen dataclass by what they name.

    kinds   field -> "format", "sum" (one of a sum, "e6m9" too) or "rounding".  ValueError for a
            name that none has, with the field, behind its `place`.
    """
    for field, kind in kinds.items():
        got = getattr(owner, field)
        if isinstance(got, str):
            try:
                object.__setattr__(owner, field, _GET[kind](got))
            except ValueError as error:
                raise ValueError(f"{place}{field}: {error}") from error

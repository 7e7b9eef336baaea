"""What a recipe does, in the cells of a table."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from textwrap import wrap

from quantizers import Off, Quantizer, QuantizerLike
from quantizers.accumulators import Accumulator
from quantizers.protocol import needs_key

from ..recipe import OPERANDS, Recipe, short

HEADERS = ("recipe", "operands", "scales", "when to take it", "what it leaves out")
#: of the columns in a terminal: 100 with two between
_WIDTHS = (15, 21, 20, 18, 18)


def text(recipes: Iterable[Recipe]) -> str:
    """One table of 100 columns, a blank line between recipes."""
    lines = [_line(HEADERS), _line(["-" * width for width in _WIDTHS])]
    for recipe in recipes:
        parts = [wrap(cell, width) for cell, width in zip(cells(recipe), _WIDTHS, strict=True)]
        lines += [_line(row) for row in zip_longest(*parts, fillvalue="")] + [""]
    return "\n".join(lines)


def _line(row: Iterable[str]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(row, _WIDTHS, strict=True))
    return "  ".join(padded).rstrip()


def markdown(recipes: Iterable[Recipe]) -> str:
    """The same for a page, with the sources."""
    lines = [[*HEADERS, "source"], ["-"] * (len(HEADERS) + 1)]
    for recipe in recipes:
        name, *others = cells(recipe)
        lines.append([f"`{name}`", *others, recipe.source or "-"])
    return "\n".join("|".join(["", *(f" {cell} " for cell in line), ""]) for line in lines)


def cells(recipe: Recipe) -> tuple[str, str, str, str, str]:
    """Under HEADERS; "; " parts what is said of several operands."""
    name = recipe.name
    return name, operands(recipe), scales(recipe), recipe.when or "-", recipe.leaves_out or "-"


def operands(recipe: Recipe) -> str:
    """Formats and roundings of the three products' operands."""
    if recipe.products_off:
        return "off"
    said: dict[str, str] = {}
    for product, names in OPERANDS.items():
        text = " x ".join(_distinct(_element(recipe.slot(product, name)) for name in names))
        transform = getattr(recipe, product).transform
        text = text if transform is None else f"{text}, {transform}"
        unit = recipe.units[product]
        said[product] = f"{text}, {unit}" if isinstance(unit, Accumulator) else text
    if len(set(said.values())) == 1:
        text = said["forward"]
    elif said["grad_input"] == said["grad_weight"]:
        text = f"forward {said['forward']}; backward {said['grad_input']}"
    else:
        text = "; ".join(f"{product} {text}" for product, text in said.items())
    output = recipe.quantizes_output
    return text if output is None else f"{text}; output {_element(output)}"


def scales(recipe: Recipe) -> str:
    """What shares a scale, and which scales these are."""
    found = [slot.quantizer for slot in recipe.slots.values()]
    scaled = [q for q in found if isinstance(q, Quantizer) and q.range is not None]
    if not scaled:
        return "-"
    tiles = _distinct(str(q.granularity).replace(" along the sum", "") for q in scaled)
    kinds = _distinct(str(q.scale) for q in scaled)
    return "; ".join([*tiles, *kinds])


def _element(quantizer: QuantizerLike) -> str:
    if isinstance(quantizer, Off):
        return "off"
    fmt = getattr(quantizer, "format", None)
    text = short(quantizer) if fmt is None else str(fmt)
    return f"{text} stochastic" if needs_key(quantizer) else text


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))

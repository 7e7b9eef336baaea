"""Tables of what there is to choose from, and one recipe in full."""

from __future__ import annotations

from tabulate import tabulate

from quantizers import Off
from quantizers.formats import NAMED, Format, IntFormat, TableFormat

from . import recipes
from .recipe import SLOTS, Recipe, short
from .recipes.table import text
from .training.named import TRAINING_RECIPES


def formats_table() -> str:
    """One row per named format: bits, bounds, what lies beyond them."""
    headers = [
        "format", "bits", "largest", "smallest\nnormal", "smallest\nsubnormal", "inf", "NaN",
        "overflow",
    ]  # fmt: skip
    rows = [[name, *_format_row(number_format)] for name, number_format in NAMED.items()]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=["left", "right"])


def _format_row(number_format: Format) -> list[str]:
    if isinstance(number_format, IntFormat):
        bounds = f"{number_format.low} to {number_format.high}"
        return [str(number_format.bits), bounds, "1", "-", "no", "no", "clips"]
    if isinstance(number_format, TableFormat):
        bounds = f"{number_format.low:.6g} to {number_format.high:.6g}"
        least = f"{number_format.smallest:.6g}"
        return [str(number_format.bits), bounds, least, "-", "no", "no", "clips"]
    f = number_format
    subnormal = f"{f.smallest:.6g}" if f.smallest < f.smallest_normal else "-"
    return [
        str(f.bits),
        f"{f.largest:.8g}",
        f"{f.smallest_normal:.6g}",
        subnormal,
        "yes" if f.has_inf else "no",
        "yes" if f.has_nan else "no",
        f.on_overflow,
    ]


def recipes_table() -> str:
    """The quantization recipes, then the named training runs."""
    lines = ["Quantization recipes (x parts a product's operands, blocks lie along its sum):", ""]
    lines.append(text(map(recipes.get, recipes.names())))
    lines += ["Training runs (a recipe with a model, data and settings):", ""]
    lines += [f"  {run_line(name)}" for name in TRAINING_RECIPES]
    return "\n".join(
        [*lines, "", "One in full, or as a file to edit: qtrain recipes NAME [--save FILE.yaml]"]
    )


def run_line(name: str) -> str:
    """A training run and its settings."""
    return f"{name}: {', '.join(f'{k}={v}' for k, v in TRAINING_RECIPES[name].items())}"


def recipe_page(recipe: Recipe) -> str:
    """One recipe: what it is for, each operand's quantizer, where it is from."""
    lines = [f"{recipe.name}: {recipe.when}" if recipe.when else recipe.name, ""]
    rows = [
        [f"{product}.{operand}", _operand(recipe, product, operand)] for product, operand in SLOTS
    ]
    for product in ("forward", "grad_input", "grad_weight"):
        transform = getattr(recipe, product).transform
        if transform is not None:
            rows.append([f"{product}.transform", f"{transform}: of both operands along the sum"])
    rows += [[product, f"summed in {unit}"] for product, unit in recipe.summed_in.items()]
    if recipe.activation is not None:
        kept = ", kept in 16 bits" if recipe.narrow else ""
        rows.append(["activation", f"outputs rounded to {recipe.activation}{kept}"])
    if recipe.norm is not None:
        rows.append(["norm", str(recipe.norm)])
    if recipe.lookup is not None:
        rows.append(["lookup", str(recipe.lookup)])
    rows.append(["bits", "as above, or as --bits says, 2 to 16" if recipe.with_bits else "fixed"])
    rows.append(["leaves out", recipe.lacks or "nothing"])
    rows.append(["source", recipe.source or "-"])
    lines.append(tabulate(rows, tablefmt="plain", disable_numparse=True, maxcolwidths=[None, 76]))
    return "\n".join(lines)


def _operand(recipe: Recipe, product: str, operand: str) -> str:
    slot = recipe.slots[product, operand]
    if slot.reused and not isinstance(slot.quantizer, Off):
        return "as the forward quantized it"
    return short(slot.quantizer) + (" of the forward's value" if slot.of_forward else "")

"""A recipe in words."""

from __future__ import annotations

from typing import Any

from .slots import OPERANDS, short


def text_of(recipe: Any) -> str:
    """A Recipe's name, and what each operand, sum and output is."""
    if recipe.products_off:
        return f"{recipe.name}: off{_lookup(recipe)}"
    grad_input = recipe.slot("grad_input", "grad_output")
    grad_weight = recipe.slot("grad_weight", "grad_output")
    text = (
        f"{recipe.name}: input {short(recipe.forward.input)}; "
        f"weight {short(recipe.forward.weight)}; "
        f"grad_output for grad_input {short(grad_input)}; "
        f"for grad_weight {short(grad_weight)}"
    )
    for product, operand in (("grad_input", "weight"), ("grad_weight", "input")):
        if not recipe.reuses(product, operand):
            text += f"; {operand} for {product} {short(recipe.slot(product, operand))}"
            if recipe.slots[product, operand].of_forward:
                text += " of the forward's value"
    for product, unit in recipe.summed_in.items():
        text += f"; {product} in {unit}"
    for product in OPERANDS:
        transform = getattr(recipe, product).transform
        if transform is not None:
            text += f"; {product} after {transform}"
    if recipe.activation is not None:
        text += f"; output {recipe.stored_as}"
    if recipe.query_chunk is not None:
        text += f"; attention of {recipe.query_chunk} queries at a time"
    return text + _lookup(recipe)


def _lookup(recipe: Any) -> str:
    return f"; lookup {recipe.lookup}" if recipe.lookup else ""

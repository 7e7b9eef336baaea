"""Where a quantizer that learns has no place."""

from __future__ import annotations

from quantizers import QuantizerLike
from quantizers.protocol import learns


def check_learned(
    place: str, text: str, quantizer: QuantizerLike, cut: object, late: bool, operand: str
) -> None:
    """ValueError for a quantizer that learns and whose operand is cut, or taken in the backward
    pass alone.  place, text: of the operand and the quantizer; cut: by what it is, in words."""
    if not learns(quantizer):
        return
    if late:
        raise ValueError(
            f"{place}: {text} learns, and the loss does not depend on an operand that the backward "
            f"pass alone takes; use it in forward.{operand} and leave {place} out, or take one "
            f"without parameters"
        )
    if cut:
        raise ValueError(
            f"{place}: {text} learns, and {cut} is of the operand as a matrix of its product, "
            f"which its parameters do not follow; leave one of them out"
        )

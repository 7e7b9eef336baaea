"""What a scale takes from the format of the elements that it scales."""

from __future__ import annotations

from ..formats import Format, IntFormat, TableFormat
from ..granularity import per_tensor
from .scale import Scale


def check_elements(scale: Scale, elements: Format) -> None:
    """ValueError unless elements of this format can be scaled so."""
    if scale.granularity != per_tensor:
        raise ValueError(
            f"scale.granularity: got {scale.granularity}, which is for an outer scale, "
            f"Scale(e4m3, over=Scale(fp32, granularity=...)); the elements' own scale has the "
            f"quantizer's granularity"
        )
    if isinstance(elements, TableFormat) and scale.rule != "amax":
        raise ValueError(
            f"scale.rule: got {scale.rule!r} for {elements}, whose values have no exponents; "
            f"give rule='amax', amax over the largest magnitude of the table"
        )
    top = max(scale.tops(elements))
    if top > 32 * elements.largest:
        raise ValueError(
            f"scale.top: got {top:g}, {top / elements.largest:.0f} times the largest of "
            f"{elements}, {elements.largest:g}, so that nearly all elements would saturate; give "
            f"at most 32 times, or, for the scale of a scale, over=Scale(top={top:g})"
        )
    affine = isinstance(elements, IntFormat) and not elements.symmetric
    if affine and scale != Scale(scale.format, rounding=scale.rounding):
        raise ValueError(
            f"scale: got {scale} for {elements}, whose scale spreads low .. high over codes; "
            f"such a format takes a scale's format and rounding alone; give a symmetric one"
        )

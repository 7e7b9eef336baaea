"""Text and numbers as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from ...files.terminal import printable

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def esc(text: object) -> str:
    """Text that is harmless anywhere in a page; characters that do not print are spelt out."""
    return html.escape(printable(text, keep=""), quote=True)


def name(layer: str) -> str:
    """A module path, which may be broken behind a dot."""
    return esc(layer).replace(".", ".<wbr>")


def decibels(value: float) -> str:
    """dB with one decimal; NaN, inf and -inf as such."""
    return f"{value:.1f}" if math.isfinite(value) else _nonfinite(value)


def short(value: float) -> str:
    """A number in three digits, 1.2e-5 where it is small or large; NaN, inf and -inf as such."""
    if not math.isfinite(value):
        return _nonfinite(value)
    small = 0 < abs(value) < 1e-3
    mantissa, _, exponent = (f"{value:.2e}" if small else f"{value:.3g}").partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def percent(fraction: float) -> str:
    """A fraction in %: 0 and 100 only where it is so."""
    if fraction in (0, 1) or not math.isfinite(fraction):
        return short(100 * fraction)
    return "<0.01" if fraction < 5e-5 else f"{min(100 * fraction, 99.99):.2f}"


def power(exponent: int) -> str:
    """2 to an integer, with a raised exponent."""
    return f"2{str(exponent).translate(_SUPERSCRIPT)}"


def count(number: int, noun: str) -> str:
    """1 layer, 2 layers."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def table(
    caption: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    kind: str = "numbers",
    words: Sequence[str] = (),
) -> str:
    """A table with a caption, in a box that scrolls by itself where it is too wide.

    caption, headers   text;  rows: HTML, the first cell of each its heading
    kind               "numbers", flush right but for the columns in `words`, or "words"
    """
    looks = [' class="word"' if header in words else "" for header in headers]
    top = "".join(
        f'<th scope="col"{look}>{esc(header)}</th>'
        for header, look in zip(headers, looks, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td{look}>{cell}</td>" for cell, look in zip(rest, looks[1:], strict=True))
        + "</tr>\n"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(caption)}">'
        f'<table class="{kind}"><caption>{esc(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _nonfinite(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value}"

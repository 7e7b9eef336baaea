"""Numbers as text: short, and honest about what is not finite."""

from __future__ import annotations

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def decibels(value: float) -> str:
    """dB with one decimal; "exact" for inf, where there is no error; NaN and -inf as such."""
    if value == math.inf:
        return "exact"
    return f"{value:.1f}" if math.isfinite(value) else _nonfinite(value)


def in_decibels(value: float) -> str:
    """The same with its unit."""
    text = decibels(value)
    return text if text == "exact" else f"{text} dB"


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


def _nonfinite(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value}"

"""Spellings of before, which still work and say what to write now."""

from __future__ import annotations

import functools
import warnings
from typing import Any, TypeVar

from .scale import Scale

T = TypeVar("T")
#: fields of a Quantizer before it had a `scale` -> what of a Scale they were
_SCALE = {"scale_format": "format", "scale_rounding": "rounding"}


def with_scale(settings: dict[str, Any]) -> dict[str, Any]:
    """A Quantizer's settings, `scale_format` and `scale_rounding` as a `scale`."""
    old = [name for name in _SCALE if name in settings]
    if not old:
        return settings
    if "scale" in settings:
        raise ValueError(
            f"scale: got scale and {' and '.join(old)}, the spelling of before; give "
            f"scale=Scale(...) alone"
        )
    rest = {name: value for name, value in settings.items() if name not in _SCALE}
    return {**rest, "scale": Scale(**{_SCALE[name]: settings[name] for name in old})}


def accepting_scale_format(kind: type[T]) -> type[T]:
    """The class, which takes `scale_format=` and `scale_rounding=` for `scale=`, with a warning."""
    made: Any = kind.__init__

    @functools.wraps(made)
    def init(self: T, *args: Any, **settings: Any) -> None:
        now = with_scale(settings)
        if now is not settings:
            warnings.warn(
                f"scale_format= and scale_rounding= are deprecated; give scale={now['scale']!r}",
                DeprecationWarning,
                stacklevel=2,
            )
        made(self, *args, **now)

    kind.__init__ = init  # type: ignore[method-assign, assignment]
    return kind

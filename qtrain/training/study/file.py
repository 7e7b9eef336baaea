"""A study as a YAML file: the words of `study`, so that it can be kept, and run from the shell."""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

from ... import checks
from ...files.plain_yaml import parsed
from ...files.whole import text_in
from .study import study

#: words that take values of Python alone
_PYTHON = ("executor", "say")
_UNITS = {"s": 1, "m": 60, "h": 3600}


def load_study(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file says, as arguments: study(**load_study("mine.yaml"), jobs=4).

    A file has the names and values that `study` takes: model, recipes (a list of names, or names
    and what stands for each: a name, a .yaml file, null, settings), seeds, data, config, baseline,
    metric, margin, primary, rates, name, runs_dir, jobs, budget ("8m" too).  ValueError for another
    name, with the nearest, and for a file without model or recipes.
    """
    place = checks.path("load_study", path)
    known = [name for name in inspect.signature(study).parameters if name not in _PYTHON]
    with text_in(place, "study") as text:
        found = parsed(text)
        for name in found:
            checks.choice("study", name, known)
        missing = [name for name in ("model", "recipes") if name not in found]
        if missing:
            raise ValueError(f"study: has no {' and no '.join(missing)}; need model: and recipes:")
        if "budget" in found:
            found["budget"] = seconds(found["budget"])
    found.setdefault("name", place.stem)
    return found


def seconds(text: object) -> float | None:
    """The seconds of "90", "90s", "8m", "1.5h", or of a number; ValueError for other text."""
    if text is None or (isinstance(text, int | float) and not isinstance(text, bool)):
        return text
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([smh]?)", str(text).strip())
    if match is None:
        got = checks.shown(text)
        raise ValueError(f"budget: got {got}, need seconds, or such as 90s, 8m, 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]

"""A study as a YAML file: the words of `study`, so that it can be kept, and run from the shell."""

from __future__ import annotations

import inspect
import os
from typing import Any

from ... import checks
from ...files.plain_yaml import parsed
from ...files.whole import text_in
from .results import StudyResult
from .study import study


def study_of(path: str | os.PathLike[str], **said: Any) -> StudyResult:
    """The study of a file, with what is said in place of its own; ValueError for a value of the
    wrong kind, too."""
    try:
        return study(**{**load_study(path), **said})
    except TypeError as error:
        raise ValueError(error) from error


def load_study(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file says, as arguments: study(**load_study("mine.yaml"), jobs=4).

    A file has the names and values that `study` takes: model, recipes (a list of names, or names
    and what stands for each: a name, a .yaml file, null, settings), seeds, data, config, baseline,
    metric, margin, primary, rates, name, runs_dir, jobs, executor, budget ("8m").

    ValueError for another name, with the nearest, and for a file without model or recipes.
    """
    place = checks.path("load_study", path)
    known = [name for name in inspect.signature(study).parameters if name != "say"]
    with text_in(place, "study") as text:
        found = parsed(text)
        for name in found:
            checks.choice("study", name, known)
        missing = [name for name in ("model", "recipes") if name not in found]
        if missing:
            raise ValueError(f"study: has no {' and no '.join(missing)}; need model: and recipes:")
    found.setdefault("name", place.stem)
    return found

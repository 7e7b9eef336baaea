"""Public calls with arguments of every kind: each works, or says what was wrong with it.

Right is a call that returns, where its arguments may be what they are, or that raises a TypeError
or ValueError of our own, whose text names the argument.  Wrong is every other exception, an error
that Python or torch raised somewhere below, and silence about an argument that cannot be honoured.
"""

from __future__ import annotations

import linecache
import os
import random
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ._api_entries import ENTRIES, Entry
from ._api_values import chosen

_OURS = tuple(f"{os.sep}{package}{os.sep}" for package in ("qtrain", "quantizers"))


def attack(draw: random.Random) -> str | None:
    """One call of one public name, with one or two arguments replaced."""
    name = draw.choice(list(ENTRIES))
    entry = ENTRIES[name]
    state = torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _attack(draw, name, entry)
    finally:
        torch.set_rng_state(state)


def _attack(draw: random.Random, name: str, entry: Entry) -> str | None:
    call, given = entry.make(draw)
    replaced: dict[str, str] = {}
    refused = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        argument = draw.choice(list(entry.kinds))
        text, value = chosen(draw)
        if argument == "path" and isinstance(value, str) and value:
            value = os.path.join(tempfile.gettempdir(), "qtrain-fuzz-none", value)
        given[argument], replaced[argument] = value, text
    for argument in replaced:
        if entry.kinds[argument].refuses(given[argument]):
            refused.append(argument)
    shown = f"{name}({', '.join(f'{a}={text}' for a, text in replaced.items())})"
    spread = [given.pop(entry.spread)] if entry.spread in given else []
    try:
        call(*spread, **given)
    except (TypeError, ValueError) as error:
        if _users_own(replaced, given, error):
            return None
        return _judged(shown, error, (*replaced, *entry.names, name))
    except OSError as error:
        if any("path" in a or a in ("a", "b", "record", "folder") for a in replaced):
            return None
        return f"{shown}: {type(error).__name__}: {error}"
    except Exception as error:
        if _users_own(replaced, given, error):
            return None
        return f"{shown}: {type(error).__name__}: {str(error)[:200]!r} {_place(error)}"
    if refused:
        return f"{shown}: accepted, though {', '.join(refused)} cannot be honoured"
    return None


def _users_own(replaced: Iterable[str], given: Mapping[str, Any], error: Exception) -> bool:
    """Whether the words are those of what the user gave: of a function, or of the network, called
    with tensors, or with as many inputs as there were."""
    if any(frame.name == "step" for frame in traceback.extract_tb(error.__traceback__)[-2:]):
        return True
    inputs = given.get("inputs")
    called = isinstance(inputs, torch.Tensor | range | list | tuple | dict)
    return ("inputs" in replaced and (called or str(error).startswith("layer "))) or any(
        callable(given.get(argument))
        and not isinstance(given[argument], type)
        and argument in ("diverges", "loss", "step", "diverged", "rule", "say")
        for argument in replaced
    )


def _judged(shown: str, error: Exception, names: tuple[str, ...]) -> str | None:
    """None for an error of our own that names an argument."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    ours = any(part in last.filename for part in _OURS) and line.startswith("raise")
    missing = last.filename == __file__  # Python's own, of the signature
    text = str(error)
    if not (ours or missing or last.filename.endswith("_api_entries.py")):
        return f"{shown}: {type(error).__name__} from below: {text[:200]!r} {_place(error)}"
    if not any(name in text for name in names):
        return f"{shown}: {text[:200]!r} names none of {', '.join(names)}"
    return None


def _place(error: BaseException) -> str:
    frames: list[Any] = [
        f for f in traceback.extract_tb(error.__traceback__) if any(p in f.filename for p in _OURS)
    ]
    return f"at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""

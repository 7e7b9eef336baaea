"""Plain data written as YAML 1.1 and 1.2 alike: it reads the same with any reader of either."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .plain_yaml import RESERVED

#: what is written without quotes behind a colon; in brackets and braces a comma parts values
_PLAIN = re.compile(r"[A-Za-z_][\w.()/,=-]*(?: [\w.()/,=-]+)*", re.ASCII)
_PLAIN_INSIDE = re.compile(_PLAIN.pattern.replace(",", ""), re.ASCII)


def dumped(tree: Mapping[str, Any]) -> str:
    """A mapping as text.  Keys: text; values: None, bool, int, finite float, str, lists
    and tuples of such, and mappings, which an empty one is written as {} for."""
    return "".join(f"{line}\n" for line in _lines(tree, ""))


def _lines(tree: Mapping[str, Any], indent: str) -> list[str]:
    found = []
    for key, value in tree.items():
        key = key if key.isidentifier() and _is_plain(key, _PLAIN) else json.dumps(key)
        if isinstance(value, Mapping) and value:
            found += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            found.append(f"{indent}{key}: {_inline(value)}")
    return found


def _inline(value: Any, plain: re.Pattern[str] = _PLAIN) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_inline(each, _PLAIN_INSIDE) for each in value)}]"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"got {value}, need a finite number")
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, str):
        return value if _is_plain(value, plain) else json.dumps(value)
    return json.dumps(value)


def _is_plain(text: str, plain: re.Pattern[str]) -> bool:
    return plain.fullmatch(text) is not None and text.lower() not in RESERVED

"""Plain data as YAML: a strict subset, nested mappings of scalars and lists, read without a library
that knows more than that, takes `off` for False, and the second of two equal keys.

What is written is YAML 1.1 and 1.2 alike, and reads the same with any reader of either.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

#: what needs no quotes behind a colon; in brackets and braces a comma parts values
_PLAIN = re.compile(r"[A-Za-z_][\w.()/,=-]*(?: [\w.()/,=-]+)*", re.ASCII)
#: what else is read as text: blocks(None), history(16, use="max")
_CALL = re.compile(r"[A-Za-z_]\w*\((?!.*: ).*\)", re.ASCII)
_PLAIN_INSIDE = re.compile(_PLAIN.pattern.replace(",", ""), re.ASCII)
#: what other readers take for something else
_RESERVED = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:e[+-]?[0-9]+)?")
_CONSTANTS = {"null": None, "true": True, "false": False}
#: a field's name, in quotes where it is no plain word
_KEY = r'[A-Za-z_]\w*|"(?:[^"\\]|\\.)*"'
_LINE = re.compile(rf"( *)({_KEY}):(?: +(.*))?", re.ASCII)
#: a call to the third depth, whose commas part arguments
_WHOLE_CALL = r"[A-Za-z_]\w*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_END = re.compile(r"\s*(?:#|$)")
#: a token in brackets or braces: a mark, a field, a text in quotes or a call, any other
_TOKEN = re.compile(
    r"\s*(?:([\[\]{},])"
    rf"|({_KEY}):(?=\s|$)"
    rf'|("(?:[^"\\]|\\.)*"|{_WHOLE_CALL}(?=\s*(?:[\]}},#]|$)))'
    r'|([^\[\]{},"#\s][^\[\]{},"#]*))',
    re.ASCII,
)


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
    return plain.fullmatch(text) is not None and text.lower() not in _RESERVED


def parsed(text: str) -> dict[str, Any]:
    """The mapping that `dumped` wrote, or somebody by hand; lists come back as lists.

    Comments, blank lines and any deeper indentation are taken.  ValueError, with the line's number,
    for anything else that YAML has: tags, anchors, several documents, block lists, block scalars.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            lines.append((number, line.rstrip()))
    try:
        found, rest = _mapping(lines, 0)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if rest:
        _refuse(rest[0][0], "indented less than the line above it, but as deep as none before that")
    return found


_Lines = Sequence[tuple[int, str]]


def _mapping(lines: _Lines, least: int) -> tuple[dict[str, Any], _Lines]:
    """The mapping that begins with these lines, indented by `least` or more, and what follows."""
    found: dict[str, Any] = {}
    own = None
    while lines:
        number, line = lines[0]
        match = _LINE.fullmatch(line)
        if match is None:
            _refuse(number, "need `name: value`, indented by spaces")
        indent, key, rest = len(match[1]), _name(match[2], number), match[3] or ""
        own = indent if own is None else own
        if indent < own or indent < least:
            break
        if indent > own:
            _refuse(number, "indented deeper than the line before it, which has no mapping")
        if key in found:
            _refuse(number, f"{key} stands here a second time")
        lines = lines[1:]
        if rest and not rest.startswith("#"):
            found[key] = _value(rest, number)
        else:
            found[key], lines = _mapping(lines, own + 1)
            if not found[key]:
                _refuse(number, f"{key} has no value; {{}} is an empty mapping, null is none")
    return found, lines


def _value(text: str, number: int) -> Any:
    """What stands behind a colon."""
    if text[0] not in '[{"':
        return _scalar(re.split(r"\s#", text)[0].rstrip(), number, _PLAIN)
    tokens = []
    at = 0
    while at < len(text) and not _END.match(text, at):
        match = _TOKEN.match(text, at)
        if match is None:
            _refuse(number, f"{text[at:]!r:.40} is no value")
        tokens.append(match)
        at = match.end()
    tokens.reverse()
    value = _item(tokens, number)
    if tokens:
        _refuse(number, f"{tokens[-1][0].strip()!r:.40} behind a value")
    return value


def _item(tokens: list[re.Match[str]], number: int) -> Any:
    """The first value of these tokens, the next one last, of which it takes its own."""
    if not tokens or (tokens[-1][1] or "[") not in "[{":
        _refuse(number, "a value is missing")
    first = tokens.pop()
    if first[2]:
        _refuse(number, f"'{first[2]}:' is a field; a mapping in one line stands in braces")
    if first[1] is None:
        return _scalar(first[3] or first[4].rstrip(), number, _PLAIN_INSIDE)
    end, pairs = {"[": ("]", False), "{": ("}", True)}[first[1]]
    items: list[Any] = []
    fields: dict[str, Any] = {}
    while tokens and tokens[-1][1] != end:
        key = tokens[-1][2]
        if pairs and not key:
            _refuse(number, f"{tokens[-1][0].strip()!r:.40} in braces, need `name: value`")
        key = _name(key or "", number)
        if key in fields:
            _refuse(number, f"{key} stands here a second time")
        if pairs:
            tokens.pop()
        value = _item(tokens, number)
        if pairs:
            fields[key] = value
        items.append(value)
        if not tokens or tokens[-1][1] != ",":
            break
        tokens.pop()
    if not tokens or tokens.pop()[1] != end:
        _refuse(number, f"a {end} or a comma is missing")
    return fields if pairs else items


def _name(text: str, number: int) -> str:
    """Without its quotes, where it has any."""
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        _refuse(number, f"{text!r:.40} is no string in double quotes")


def _scalar(text: str, number: int, plain: re.Pattern[str]) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 30 else _refuse(number, "a number of too many digits")
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.startswith('"'):
        return _name(text, number)
    if plain is _PLAIN_INSIDE and text.count("(") > text.count(")"):
        _refuse(
            number,
            f"{text!r:.40} is no whole call; other text with a comma stands in double quotes in "
            f"brackets and braces",
        )
    if text.lower() in _RESERVED:
        _refuse(
            number,
            f"{text!r} is true, false or null to other readers of YAML; as a name it stands in "
            f'double quotes, "{text}"',
        )
    if not _CALL.fullmatch(text) and not plain.fullmatch(text):
        _refuse(number, f"{text!r:.40} is no name or number; other text stands in double quotes")
    return text


def _refuse(number: int, why: str) -> NoReturn:
    raise ValueError(f"line {number}: {why}")

"""Plain data as YAML, read without a library that knows more than that, takes `off` for False, and
the second of two equal keys.

Read: mappings, lists, in lines of their own or in brackets and braces; text with and without
quotes, numbers, true, false and null; comments.  Not read: anchors, aliases, tags, text of several
lines, several documents, and words that one reader of YAML takes for another thing than the next
(yes, off, 010, 2026-11-28), which stand in quotes.  As an addition, the commas of a call such as
blocks(16, 16) need no quotes in brackets and braces, which other readers want.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

_CONSTANTS = {
    form: value
    for name, value in (("null", None), ("true", True), ("false", False))
    for form in (name, name.capitalize(), name.upper())
} | {"~": None}
#: what readers differ on: is it a truth value, a number in base 8, of minutes, a date?
RESERVED = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_DOUBTFUL = re.compile(
    r"[-+]?(?:0[0-9_]+(?:\..*)?|0[xob]\w+|[0-9][0-9_]*(?:[:_][0-9_]+)+(?:\.[0-9_]*)?|\.(?:inf|nan))"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*|<<|=",
    re.ASCII | re.IGNORECASE,
)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')"""
#: text without quotes, in a line of its own and in brackets and braces
_TEXT, _TEXT_INSIDE = (
    r"(?:[^\s\-?:,\[\]{}#&*!|>'\"%@`]|[-?:](?=[^\s" + marks + r"]))"
    r"(?:(?!\s\#|:(?:\s|$))[^" + (marks or r"\n") + r"])*"
    for marks in ("", r",\[\]{}")
)
_LINE = re.compile(rf"( *)({_QUOTED}|{_TEXT}):(?:\s+(.*))?")
_ITEM = re.compile(r"( *)-(?: +|$)")
#: a call to the third depth, whose commas part arguments
_WHOLE_CALL = r"[A-Za-z_]\w*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_END = re.compile(r"\s*(?:#|$)")
#: a token in brackets or braces: a mark, a field, a text in quotes or a call, any other
_TOKEN = re.compile(
    r"\s*(?:([\[\]{},])"
    rf"|({_QUOTED}(?=:)|{_TEXT_INSIDE}(?=:(?:\s|$))):"
    rf"|({_QUOTED}|{_WHOLE_CALL}(?=\s*(?:[\]}},#]|$)))"
    rf"|({_TEXT_INSIDE}))",
    re.ASCII,
)


def parsed(text: str) -> dict[str, Any]:
    """The mapping that `dumped` wrote, or somebody by hand; lists come back as lists.

    ValueError, with the line's number, for what is not read.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("--- "):
            _refuse(number, "need --- in a line of its own")
        if line.strip() and not line.lstrip().startswith("#"):
            if line.lstrip(" ").startswith("\t"):
                _refuse(number, "indented by a tab; need spaces")
            lines.append((number, line.rstrip()))
    if lines and lines[0][1] == "---":
        del lines[0]
    if not lines:
        return {}
    try:
        found, rest = _node(lines)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if rest:
        _refuse(rest[0][0], "belongs to nothing above it: wrongly indented, or a second document")
    if not isinstance(found, dict):
        _refuse(lines[0][0], "need `name: value`")
    return found


_Lines = Sequence[tuple[int, str]]


def _node(lines: _Lines) -> tuple[Any, _Lines]:
    """The list, mapping or value that begins with these lines, and the lines that follow it."""
    number, line = lines[0]
    if _ITEM.match(line):
        return _list(lines)
    if _LINE.fullmatch(line):
        return _mapping(lines)
    return _value(line.strip(), number, lines[1:])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _list(lines: _Lines) -> tuple[list[Any], _Lines]:
    found: list[Any] = []
    own = _indent(lines[0][1])
    while lines and (match := _ITEM.match(lines[0][1])) and len(match[1]) == own:
        number, line = lines[0]
        if _END.match(line, match.end()):
            _refuse(number, "a dash has no value behind it")
        # what is behind the dash, and the lines below that are as deep, belong together
        first = (number, " " * match.end() + line[match.end() :])
        value, lines = _node([first, *lines[1:]])
        found.append(value)
    return found, lines


def _mapping(lines: _Lines) -> tuple[dict[str, Any], _Lines]:
    found: dict[str, Any] = {}
    own = _indent(lines[0][1])
    while lines and _indent(lines[0][1]) >= own:
        number, line = lines[0]
        match = _LINE.fullmatch(line)
        if match is None:
            _refuse(number, "need `name: value`, indented by spaces")
        if len(match[1]) > own:
            _refuse(number, "indented deeper than the line before it, which has no mapping")
        key, rest, lines = _name(match[2], number), match[3] or "", lines[1:]
        if key in found:
            _refuse(number, f"{key} stands here a second time")
        if not _END.match(rest):
            found[key], lines = _value(rest, number, lines)
            continue
        least = own if lines and _ITEM.match(lines[0][1]) else own + 1
        if not lines or _indent(lines[0][1]) < least:
            _refuse(number, f"{key} has no value; {{}} is an empty mapping, null is none")
        found[key], lines = _node(lines)
    return found, lines


def _value(text: str, number: int, lines: _Lines) -> tuple[Any, _Lines]:
    """What stands behind a colon or a dash, in brackets or braces up to where they end."""
    if text[0] not in "[{":
        quoted = re.match(rf"{_QUOTED}(?={_END.pattern})", text)
        return _scalar(quoted[0] if quoted else re.split(r"\s#", text)[0].rstrip(), number), lines
    tokens: list[re.Match[str]] = []
    while True:
        at = 0
        while not _END.match(text, at):
            match = _TOKEN.match(text, at)
            if match is None:
                _refuse(number, f"{text[at:].strip()!r:.40} is no value")
            tokens.append(match)
            at = match.end()
        marks = [token[1] for token in tokens]
        if not lines or sum(map(marks.count, "[{")) <= sum(map(marks.count, "]}")):
            break
        (_, text), lines = lines[0], lines[1:]
    tokens.reverse()
    value = _item(tokens, number)
    if tokens:
        _refuse(number, f"{tokens[-1][0].strip()!r:.40} behind a value")
    return value, lines


def _item(tokens: list[re.Match[str]], number: int) -> Any:
    """The first value of these tokens, the next one last, of which it takes its own."""
    if not tokens or (tokens[-1][1] or "[") not in "[{":
        _refuse(number, "a value is missing")
    first = tokens.pop()
    if first[2]:
        _refuse(number, f"'{first[2]}:' is a field; a mapping in one line stands in braces")
    if first[1] is None:
        return _scalar(first[3] or first[4].rstrip(), number, inside=True)
    end, pairs = {"[": ("]", False), "{": ("}", True)}[first[1]]
    items: list[Any] = []
    fields: dict[str, Any] = {}
    while tokens and tokens[-1][1] != end:
        key = tokens[-1][2]
        if pairs and not key:
            _refuse(number, f"{tokens[-1][0].strip()!r:.40} in braces, need `name: value`")
        if pairs:
            tokens.pop()
            key = _name(key, number)
            if key in fields:
                _refuse(number, f"{key} stands here a second time")
            fields[key] = _item(tokens, number)
        else:
            items.append(_item(tokens, number))
        if not tokens or tokens[-1][1] != ",":
            break
        tokens.pop()
    if not tokens or tokens.pop()[1] != end:
        _refuse(number, f"a {end} or a comma is missing")
    return fields if pairs else items


def _name(text: str, number: int) -> str:
    """A field's name."""
    found = _scalar(text.rstrip(), number)
    if not isinstance(found, str):
        _refuse(number, f'{text} is no text; as a name it stands in quotes, "{text}"')
    return found


def _scalar(text: str, number: int, *, inside: bool = False) -> Any:
    if text[0] == "'" and re.fullmatch(_QUOTED, text):
        return text[1:-1].replace("''", "'")
    if text[0] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            _refuse(number, f"{text!r:.40} is no string in double quotes")
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text) and len(text) < 30:
        return int(text)
    if _FLOAT.fullmatch(text):
        found = float(text) if len(text) < 30 else math.inf
        return found if math.isfinite(found) else _refuse(number, "a number of too many digits")
    if inside and text.count("(") > text.count(")"):
        _refuse(
            number,
            f"{text!r:.40} is no whole call; other text with a comma stands in double quotes in "
            f"brackets and braces",
        )
    if text.lower() in RESERVED or _DOUBTFUL.fullmatch(text):
        what = "true, false or null" if text.lower() in RESERVED else "something else"
        _refuse(
            number,
            f"{text!r} is {what} to other readers of YAML; as a name it stands in double quotes, "
            f'"{text}"',
        )
    if not re.fullmatch(_TEXT, text):
        _refuse(number, f"{text!r:.40} is no name or number; other text stands in double quotes")
    return text


def _refuse(number: int, why: str) -> NoReturn:
    raise ValueError(f"line {number}: {why}")

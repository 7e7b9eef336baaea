"""Verdict: what is wrong with a run, where, why, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from .. import checks
from ..files.terminal import printable
from ..reports.numbers import count, short
from ..reports.page.shell import Section, part
from ..reports.rows import save_rows
from ..reports.table import WIDTH, Cell, Table

#: What no record of errors shows.
_ELSEWHERE = (
    "behind full precision all the same? sensitivity and recommend: what the bits\n"
    "cost; accumulated(..., reference=): norms, too"
)
#: The severity from which on nothing is left of a tensor.
GRAVE = 2.0
#: The most findings that are shown.
_MOST = 50


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One symptom of one tensor of one layer.

    layer, role   as in `MonitorRow`
    symptom       the rule's name;  value: the figure over all records;  threshold: from where on
                  it is a symptom
    seen, records   at how many of how many records it was past the threshold, first at step `first`
                  and last at step `last`
    cause         the suspected one;  remedy: what to set;  source: where the threshold comes from
    severity      0 at the threshold, and 1 more for every factor of ten; 2 and more where nothing
                  is left of the tensor.  A product's is at most that of its worst operand
    """

    layer: str
    role: str
    symptom: str
    value: float
    threshold: float
    seen: int
    records: int
    first: int
    last: int
    cause: str
    remedy: str
    source: str
    severity: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Findings: those first that leave nothing of a tensor, from severity 2 on, then others; of
    both what began at the earlier step, the cause of what came later; of one step the more severe,
    and of equally severe ones the earlier in a training step.
    `print(verdict)`, `verdict.worst(3)`, `if verdict: ...` (something is wrong),
    `verdict.save("verdict.csv")`.

    checked   what was looked at, in a sentence;  rules: the symptoms that were looked for
    """

    findings: tuple[Finding, ...]
    checked: str
    rules: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.findings)

    def worst(self, count: int = 5) -> list[Finding]:
        """The first findings."""
        return list(self.findings[: checks.integer("worst", count, low=1)])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the findings to a .json or .csv file, atomically.  ValueError for other endings."""
        return save_rows(self.findings, Finding, path)

    def __str__(self) -> str:
        if not self.findings:
            text = _wrapped(f"nothing is wrong in {self.checked}; looked for: ", self.rules)
            return f"{text}\n{_ELSEWHERE}"
        below = _wrapped(f"checked: {self.checked}; for: ", self.rules)
        return "\n\n".join([_table(self.findings), *_explained(self.findings), below])


def _table(findings: Sequence[Finding]) -> str:
    lines: list[list[str] | str] = []
    for i, f in enumerate(findings):
        if i == 0 or (f.layer, f.role) != (findings[i - 1].layer, findings[i - 1].role):
            lines.append(f"{f.layer}: {f.role}")
        figures = f"{f.severity:.1f}", f"{f.value:.2g}", f"{f.threshold:.2g}"
        seen = f"{f.seen} of {f.records}", f"{f.first} to {f.last}"
        lines.append([f"- {f.symptom}", *figures, *seen])
    headers = ["tensor and symptom", "severity", "value", "limit", "records", "steps"]
    return Table(headers=headers, lines=lines).text()


def explanations(findings: Sequence[Finding]) -> list[Finding]:
    """The first finding of each symptom and cause: what has to be explained once."""
    first: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        first.setdefault((finding.symptom, finding.cause), finding)
    return list(first.values())


def _explained(findings: Sequence[Finding]) -> list[str]:
    """Cause and remedy of each symptom once, as of its first finding."""
    return [
        "\n".join(
            fill(printable(text), WIDTH, subsequent_indent="  ", break_on_hyphens=False)
            for text in (f"{f.symptom}: {f.cause} [{f.source}]", f"  do: {f.remedy}")
        )
        for f in explanations(findings)
    ]


def _wrapped(text: str, names: Sequence[str]) -> str:
    return fill(text + ", ".join(names), WIDTH, subsequent_indent="  ")


def verdict_section(verdict: Verdict, layers: Sequence[str]) -> Section:
    """The findings in their order.  layers: those that the page shows, in its order."""
    looked = f"{verdict.checked}; for: {', '.join(verdict.rules)}"
    if not verdict:
        body = part("text", [f"Nothing is wrong in {looked}."])
        return Section(id="verdict", title="Verdict", body=body)
    shown = verdict.findings[:_MOST]
    places = {layer: f"layer-{i}" for i, layer in enumerate(layers)}
    lines: list[list[Cell]] = [
        [
            (f.layer, places.get(f.layer, "")),
            f.role,
            f.symptom,
            f"{f.severity:.1f}",
            short(f.value),
            short(f.threshold),
            f"{f.seen:,} of {f.records:,}, steps {f.first:,} to {f.last:,}",
        ]
        for f in shown
    ]
    headers = ("layer", "role", "symptom", "severity", "value", "limit", "records")
    caption = f"{count(len(verdict.findings), 'finding')}, the earliest of the gravest first"
    if len(shown) < len(verdict.findings):
        caption += f"; the first {len(shown)}"
    words = ("role", "symptom", "records")
    table = Table(caption=caption, headers=headers, lines=lines, words=words)
    causes = [
        ["", f.symptom, f" ({f.layer}): {f.cause} [{f.source}]. ", "Do", f": {f.remedy}"]
        for f in explanations(verdict.findings)
    ]
    body = part("table", table) + part("items", causes) + part("text", [f"Looked for in {looked}."])
    return Section(id="verdict", title="Verdict", body=body)

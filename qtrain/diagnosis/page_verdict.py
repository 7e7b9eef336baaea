"""What is wrong with a run, why, and what to do: the verdict on its records."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.numbers import count, short
from ..reports.page.shell import Section, part
from ..reports.table import Cell, Table
from .verdict import Verdict, explanations

#: The most findings that are shown.
MOST = 50


def verdict_section(verdict: Verdict, layers: Sequence[str]) -> Section:
    """The findings, the most severe first.  layers: those that the page shows, in its order."""
    looked = f"{verdict.checked}; for: {', '.join(verdict.rules)}"
    if not verdict:
        body = part("text", [f"Nothing is wrong in {looked}."])
        return Section(id="verdict", title="Verdict", body=body)
    shown = verdict.findings[:MOST]
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
    caption = f"{count(len(verdict.findings), 'finding')}, the most severe first"
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

"""What is wrong with a run, why, and what to do: the verdict on its records."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.page.html import count, esc, name, short, table
from ..reports.page.shell import Section
from .verdict import Verdict, explanations

#: The most findings that are shown.
MOST = 50


def verdict_section(verdict: Verdict, layers: Sequence[str]) -> Section:
    """The findings, the most severe first.  layers: those that the page shows, in its order."""
    looked = f"{esc(verdict.checked)}; for: {esc(', '.join(verdict.rules))}"
    if not verdict:
        return Section(id="verdict", title="Verdict", body=f"<p>Nothing is wrong in {looked}.</p>")
    shown = verdict.findings[:MOST]
    places = {layer: i for i, layer in enumerate(layers)}
    lines = [
        [
            f'<a href="#layer-{places[f.layer]}">{name(f.layer)}</a>'
            if f.layer in places
            else name(f.layer),
            esc(f.role),
            esc(f.symptom),
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
    found = table(caption, headers, lines, words=("role", "symptom", "records"))
    causes = "".join(
        f"<li><b>{esc(f.symptom)}</b> ({name(f.layer)}): {esc(f.cause)} [{esc(f.source)}]. "
        f"<b>Do</b>: {esc(f.remedy)}</li>\n"
        for f in explanations(verdict.findings)
    )
    return Section(
        id="verdict", title="Verdict",
        body=f"{found}<ul>\n{causes}</ul>\n<p>Looked for in {looked}.</p>",
    )  # fmt: skip

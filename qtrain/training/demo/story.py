"""What the demonstration found, in sentences made of its numbers, and as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...diagnosis.recommendation import Recommendation
from ...diagnosis.verdict import Verdict, verdict_section
from ...inspection.page import Card, strip
from ...reports.heat import level_names
from ...reports.numbers import count
from ...reports.page.shell import Section, page, part, save
from ...reports.plots import Line, Panel
from ..curves import metric_points
from ..intervals import Interval
from ..results import Result

#: A remark of the page: what is bold, and what follows, in turn.
Sentence = list[str]


@dataclass(frozen=True, kw_only=True)
class Story:
    """The demonstration's end.  `print(story)` gives the sentences.

    results  arm ("full precision", "int8", "int4", and "int4 mended" where something was to mend)
             to its run
    verdict  of `diagnose` on the int4 run;  found: of `recommend`, None where 8 bits of operands
             bring the gradient to no cosine that was asked for
    gaps     arm to its test accuracy minus full precision's;  gain: the mended run's minus int4's
    path     of the page
    """

    results: Mapping[str, Result]
    verdict: Verdict
    found: Recommendation | None
    gaps: Mapping[str, Interval]
    gain: Interval | None
    path: Path

    @property
    def breaks(self) -> bool:
        """Whether int4 ends below full precision, by the whole of the interval."""
        return self.gaps["int4"].high < 0

    @property
    def mended(self) -> bool:
        """Whether the mended run ends above int4's, by the whole of the interval."""
        return self.gain is not None and self.gain.low > 0

    @property
    def holds(self) -> bool:
        """Whether it went as one would tell it: int8 keeps up, int4 breaks, and is mended."""
        return self.gaps["int8"].high > 0 and self.breaks and self.mended

    def sentences(self) -> list[Sentence]:
        """What happened, of each step."""
        full = self.results["full precision"]
        epochs = full.config.epochs
        told = [["Full precision", f" ends at {_percent(full)} after {count(epochs, 'epoch')}."]]
        told.append(_against("int8", self, "."))
        told.append(_against("int4", self, "." if self.breaks else "; it does not break here."))
        told.append(["diagnose", f" says of the int4 run: {self._diagnosis()}."])
        told.append(["recommend", f" says: {self._advice()}."])
        if self.gain is not None:
            said = "mended" if self.mended else "no better than int4, as far as this test can tell"
            of = f"{_points(self.gain)} to int4: {said}."
            told.append(_against("int4 mended", self, f"; {of}"))
        return told

    def _diagnosis(self) -> str:
        if not self.verdict:
            return "nothing is wrong but the number of bits"
        first, *others = self.verdict.findings
        more = f" (and {len(others)} more)" if others else ""
        return f"{first.symptom} at {first.layer}, {first.role}{more}: {first.cause}"

    def _advice(self) -> str:
        if self.found is None:
            return "8 bits of single operands are not enough"
        head, *_ = str(self.found).split("\ngradient's cosine")
        text = " ".join(head.split())
        if self.found.measured is None or not self.found.widened:
            return text
        change = f"from {self.found.before:.3f} to {self.found.measured:.3f}"
        return f"{text}: the cosine of its gradient with the exact one goes {change}"

    def __str__(self) -> str:
        lines = ["".join(sentence) for sentence in self.sentences()]
        return "\n".join(f"- {line}" for line in lines)


def save_page(story: Story) -> None:
    """Write the page atomically."""
    config = story.results["int4"].config
    lead = part("text", [
        f"A deep MLP without norms, trained four times on handwritten digits from the same weights "
        f"and in the same order (seed {config.seed}), on the CPU. All of this page is computed "
        f"from these runs.",
    ])  # fmt: skip
    save(page("qtrain demo: int8, int4, and int4 mended", lead, _sections(story)), story.path)


def _sections(story: Story) -> Iterator[Section]:
    body = part("cards", _cards(story)) + part("items", [["", *one] for one in story.sentences()])
    yield Section(id="summary", title="What happened", body=body)
    yield _curves(story)
    yield _networks(story)
    report = story.results["int4"].report
    found = verdict_section(story.verdict, [])
    yield Section(id="verdict", title="What diagnose says of int4", body=found.body)
    if report is not None and story.found is not None:
        text = part("text", [" ".join(str(story.found).split())])
        yield Section(id="advice", title="What recommend says of int4", body=text)


def _cards(story: Story) -> list[Card]:
    cards: list[Card] = []
    for arm, result in story.results.items():
        remark = "test accuracy"
        if arm != "full precision":
            remark += f"; {_points(story.gaps[arm])} to full precision"
        cards.append((arm, [(_percent(result), "")], remark))
    return cards


def _curves(story: Story) -> Section:
    arms = {arm: f"arm{i}" for i, arm in enumerate(story.results)}
    panels = [
        Panel(title=title, unit=unit, x="epoch", lines=[
            Line(
                label=arm, kind=kind, marks=True,
                points=metric_points(story.results[arm].epochs, name, unit),
            )
            for arm, kind in arms.items()
        ])
        for title, unit, name in (
            ("Test accuracy", "%", "test_accuracy"),
            ("Training loss", "cross-entropy", "train_loss"),
        )
    ]  # fmt: skip
    keys = {kind: arm for arm, kind in arms.items()}
    return Section(id="curves", title="Curves", body=part("keys", keys) + part("charts", panels))


def _networks(story: Story) -> Section:
    text = (
        "SQNR in dB of each layer, from the input on the left to the output on the right, measured "
        "on one training batch after the last step: how far each tensor lies above its own error."
    )
    body = part("text", [text]) + part("legend", level_names().items())
    for arm, result in story.results.items():
        if result.report is not None:
            body += part("text", ["", arm]) + strip(result.report.rows)
    return Section(id="network", title="The layers' errors", body=body)


def _percent(result: Result) -> str:
    return f"{100 * result.accuracy['quantized']:.1f} %"


def _points(gap: Interval) -> str:
    return f"{100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _against(arm: str, story: Story, end: str) -> Sentence:
    """How an arm ends beside full precision."""
    gap = story.gaps[arm]
    said = "this test tells no difference"
    if gap.high < 0:
        said = "it falls behind"
    elif gap.low > 0:
        said = "it is ahead"
    ends = f" ends at {_percent(story.results[arm])}, {_points(gap)} to full precision"
    return [arm, f"{ends}: {said}{end}"]

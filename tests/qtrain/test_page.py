"""The HTML page: well formed, self-contained, accessible, the same for the same run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
import torch
from page_cases import HOSTILE, ROLES, monitored, names, nonfinite, record, report
from torch import nn
from training_cases import quiet, small

from qtrain import Monitor, Report, diagnose, quantize, train
from qtrain.cli import main
from qtrain.diagnosis.verdict import verdict_section
from qtrain.inspection import page_pictures
from qtrain.inspection.distributions import HIGHEST, LOWEST, VALUE_BINS, value_counts
from qtrain.inspection.row import worst_first
from qtrain.reports.heat import LEVELS, level
from qtrain.reports.numbers import in_decibels, percent, short
from qtrain.reports.page.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, drawn
from qtrain.reports.page.shell import part
from qtrain.reports.plots import Line, Panel
from qtrain.training.page import render, save_page
from qtrain.training.page_verdict import remarks, sentence
from qtrain.training.record import RunRecord, read_run

VOID = {"meta", "wbr", "br", "input"}
#: Attributes by which a page asks for something else.
FETCHING = {
    "src",
    "srcset",
    "href",
    "xlink:href",
    "action",
    "data",
    "poster",
    "style",
    "background",
}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str) -> Iterator[Element]:
        for child in self.children:
            if child.tag == tag:
                yield child
            yield from child.all(tag)

    @property
    def content(self) -> str:
        return self.text + "".join(child.content for child in self.children)


class Tree(HTMLParser):
    """Builds the tree; asserts that every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.stack = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag}: an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.stack[-1].children.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack[-1].tag == tag, f"</{tag}> where <{self.stack[-1].tag}> is open"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.stack[-1].text += data


def parsed(text: str) -> Element:
    tree = Tree()
    tree.feed(text)
    tree.close()
    assert tree.stack == [tree.root], f"<{tree.stack[-1].tag}> is never closed"
    return tree.root


CASES = {
    "run": lambda: record(names(20)),
    "inspection": lambda: RunRecord(name="x", errors=report(names(3)), measured="one batch"),
    "not-finite": nonfinite,
    "empty": lambda: RunRecord(name="x", errors=Report(()), measured="nothing"),
    "unfinished": lambda: replace(
        record(names(20)), finished=False, gap=None, epochs=(), accuracy={}
    ),
    "alone": lambda: replace(record(names(1)), environments=[]),
    "hostile": lambda: record([f"{i}{HOSTILE}" for i in range(9)], name=HOSTILE),
}  # fmt: skip


@pytest.fixture(params=CASES, scope="module")
def text(request: pytest.FixtureRequest) -> str:
    return render(CASES[request.param]())


def test_a_page_is_well_formed_and_asks_for_nothing(text: str) -> None:
    root = parsed(text)
    elements = [root, *(e for tag in set(re.findall(r"<([a-z0-9]+)", text)) for e in root.all(tag))]
    for element in elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), f"{element.tag} {name}"
            assert name not in FETCHING or (name == "href" and value.startswith("#")), value
    assert not {e.tag for e in elements} & {"link", "img", "iframe", "object", "embed", "base"}
    style = next(root.all("style")).text
    assert "url(" not in style and "@import" not in style
    assert not re.search(
        r"fetch\(|XMLHttp|WebSocket|import\(|innerHTML|eval\(", text.split("<script>")[-1]
    )


def test_the_policy_allows_the_own_style_and_script_alone(text: str) -> None:
    root = parsed(text)
    (policy,) = (
        m.attributes["content"]
        for m in root.all("meta")
        if m.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    (script,), (style,) = list(root.all("script")), list(root.all("style"))
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for kind, element in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def test_a_page_can_be_used_without_seeing_it(text: str) -> None:
    root = parsed(text)
    (document,) = root.all("html")
    assert document.attributes["lang"] == "en" and len(list(root.all("h1"))) == 1
    for table in root.all("table"):
        assert table.children[0].tag == "caption" and table.children[0].content.strip()
        assert {th.attributes.get("scope") for th in table.all("th")} <= {"row", "col"}
        rows = list(table.all("tr"))
        widths = {len(row.children) for row in rows}
        assert len(widths) == 1, f"{table.children[0].content}: rows of {widths} cells"
    tags = ("section", "details", "input", "select", "output", "table", "h2", "form", "main")
    ids = [e.attributes["id"] for tag in tags for e in root.all(tag) if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    labels = "".join(label.content for label in root.all("label"))
    for control in [*root.all("input"), *root.all("select")]:
        assert any(control in list(label.all(control.tag)) for label in root.all("label")), labels
    for link in root.all("a"):
        assert link.attributes["href"][1:] in ids and link.content.strip()
    for svg in root.all("svg"):
        assert svg.attributes["role"] == "img" and svg.children[0].tag == "title"
        assert svg.children[0].content.strip()
    for section in root.all("section"):
        assert section.attributes["aria-labelledby"] in ids
    for box in root.all("div"):
        if box.attributes.get("class") == "scroll":  # what scrolls can be reached by the keyboard
            assert box.attributes["tabindex"] == "0" and box.attributes["aria-label"]


def test_hostile_names_are_text_and_nothing_else() -> None:
    text = render(CASES["hostile"]())
    root = parsed(text)
    assert len(list(root.all("script"))) == 1 and not list(root.all("img"))
    assert text.count("alert(1)") == text.count("&lt;script&gt;alert(1)") > 20
    assert "\x00" not in text and "\\x00" in text and "\\ud800" in text and "\\u2028" in text
    text.encode()


@pytest.mark.parametrize("count", [1, 20, 200])
def test_every_row_is_there_in_network_order(count: int) -> None:
    made = record(names(count), records=2)
    root = parsed(render(made))
    (heat,) = (t for t in root.all("table") if t.attributes.get("id") == "heat")
    rows = list(heat.all("tr"))[1:]
    assert [row.children[0].content for row in rows] == names(count)
    values = {(r.layer, r.role): r.sqnr_db for r in made.errors.rows}
    for row, layer in zip(rows, names(count), strict=True):
        cells = [cell.content for cell in row.children[1:]]
        assert cells == [f"{values[layer, role]:.1f}" for role in ROLES]
        looks = [cell.attributes["class"] for cell in row.children[1:]]
        assert looks == [level(values[layer, role]) for role in ROLES]
    parts = [d for d in root.all("details") if d.attributes.get("id", "").startswith("layer-")]
    assert [next(each.all("h3")).content for each in parts] == names(count)
    for each in parts:
        assert len(list(each.all("figure"))) == len(ROLES)
        assert len(list(each.all("tr"))) == len(ROLES) + 1


def test_a_layer_takes_so_much_of_the_file_however_long_the_run() -> None:
    """Under 34 kB a layer of 9 roles whose histograms have no empty bin: 6.8 MB at 200 layers."""
    few, many = (len(render(record(names(n), records=60))) for n in (8, 24))
    assert (many - few) / 16 < 34_000 and few < 8 * 34_000 + 150_000
    assert len(render(record(names(8), records=480))) < 1.2 * few  # stretches of one colour end


def test_the_strip_has_a_cell_for_each_row() -> None:
    made = record(names(20))
    (strip,) = (d for d in parsed(render(made)).all("div") if d.attributes.get("class") == "strip")
    cells = {
        (int(x), int(y)): path.attributes["class"]
        for path in strip.all("path")
        for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", path.attributes["d"])
    }
    rows = [(i, j) for i in range(20) for j in range(len(ROLES))]
    assert cells == {
        (i, j): level(row.sqnr_db) for (i, j), row in zip(rows, made.errors.rows, strict=True)
    }


def test_what_is_not_finite_is_shown_as_such() -> None:
    root = parsed(render(nonfinite()))
    (heat,) = (t for t in root.all("table") if t.attributes.get("id") == "heat")
    assert [cell.content for cell in heat.all("td")] == ["NaN", "exact", "-inf"]
    assert [cell.attributes["class"] for cell in heat.all("td")] == ["nan", "h0", "h6"]
    assert "3 with values that are not finite" in root.content
    text = render(record(names(8)))
    assert "1 not finite" in text  # a loss or a norm of a single step
    assert "Infinity" not in text.split("<script>")[0]


def test_the_same_run_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from page_cases import names, record;"
        "from qtrain.training.page import render;"
        "print(hashlib.sha256(render(record(names(9))).encode()).hexdigest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert found == hashlib.sha256(render(record(names(9))).encode()).hexdigest()


def test_without_a_finite_number_no_chart_is_drawn() -> None:
    made = record(names(4))
    lost = [{**line, "loss": None, "grad_norm": None} for line in made.steps]
    text = render(replace(made, steps=lost))
    assert "Training loss" not in text and "Test loss" in text
    parsed(text)


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf], ids=str)
def test_the_lowest_error_of_all_layers_breaks_off_where_one_is_lost(value: float) -> None:
    made, one = record(names(8), records=4), (2, names(8)[3], "input")
    rows = [
        replace(row, sqnr_db=value) if (row.step, row.layer, row.role) == one else row
        for row in made.monitor
    ]
    root = parsed(render(replace(made, monitor=rows)))
    (chart,) = (s for s in root.all("svg") if s.children[0].content == "SQNR of input")
    assert ("lowest: 1 not finite" in chart.children[1].content) == (value != math.inf)


def test_levels_are_those_of_the_legend() -> None:
    assert [level(low) for low in LEVELS] == [f"h{i}" for i in range(len(LEVELS))]
    assert level(LEVELS[0] - 1e-9) == "h1" and level(math.inf) == "h0" and level(math.nan) == "nan"
    lists = parsed(render(record(["a"]))).all("ul")
    legends = [u for u in lists if u.attributes.get("class") == "legend"]
    assert len(legends) == 2  # of the network, and of the run
    for legend in legends:
        classes = [item.attributes["class"] for item in legend.all("li")]
        assert [c for c in classes if c.startswith("h")] == [f"h{i}" for i in range(len(LEVELS))]
        assert "nan" in classes
        assert [item.content for item in legend.all("li")][:2] == ["40 and more", "30 to 40"]


def colours(scheme: str) -> dict[str, str]:
    style = (
        resources.files("qtrain.reports.page").joinpath("report.css").read_text(encoding="utf-8")
    )
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", light))
    return found | (
        dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", dark)) if scheme == "dark" else {}
    )


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_to_read(scheme: str) -> None:
    """WCAG 2.2, level AA: 4.5 for text, 3 for what a picture shows."""
    c = colours(scheme)
    texts = [("text", "page"), ("muted", "page"), ("text", "raised"), ("muted", "raised"),
             ("link", "page"), ("text", "warn"), ("nan-text", "nan")]  # fmt: skip
    texts += [(f"h{i}-text", f"h{i}") for i in range(len(LEVELS))]
    for front, back in texts:
        assert contrast(c[f"--{front}"], c[f"--{back}"]) >= 4.5, (front, back)
    for mark in ("baseline", "quantized", "low", "median", "bar", "end", "focus"):
        assert contrast(c[f"--{mark}"], c["--page"]) >= 3, mark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_errors_go_one_way_for_whoever_sees_no_hue(scheme: str) -> None:
    c = colours(scheme)
    steps = [luminance(c[f"--h{i}"]) for i in range(1, len(LEVELS))]
    assert steps == sorted(steps, reverse=scheme == "light")


# pictures


def value_picture(counts: Sequence[int]) -> str:
    return part("mini", page_pictures.value_picture(counts))


def code_picture(counts: Sequence[int]) -> str:
    return part("mini", page_pictures.code_picture(counts))


def error_picture(points: Sequence[tuple[int, float]]) -> str:
    return part("mini", page_pictures.error_picture(points))


def test_a_histogram_tells_what_it_counts() -> None:
    counts = value_counts(torch.tensor([0.0, 1.0, 1.5, -3.0, 0.25])).tolist()
    picture = value_picture(counts)
    assert "magnitudes from 2⁻² to 2¹" in picture and "20.00 % zero, 20.00 % negative" in picture
    # -2^1 -2^0 -2^-1 -2^-2 0 2^-2 2^-1 2^0 2^1
    assert re.findall(r'class="bar"[^>]* d="([^"]+)"', picture) == ["M0 0V71M5 0V71M7 0V100"]
    assert re.findall(r'class="zero"[^>]* d="([^"]+)"', picture) == ["M4 0V71"]


def test_histograms_at_the_ends_say_so() -> None:
    counts = [0] * VALUE_BINS
    assert "none is finite" in value_picture(counts)
    counts[VALUE_BINS // 2] = 3
    assert "all zero" in value_picture(counts)
    counts[-1] = counts[VALUE_BINS // 2 + 1] = 1
    picture = value_picture(counts)
    assert LOWEST == -32 and HIGHEST == 15
    assert "from 2⁻³² or less to 2¹⁵ or more" in picture and "0 % negative" in picture


def test_codes_beyond_the_bars_share_them() -> None:
    counts = [0] * 255
    counts[0], counts[-1], counts[100] = 1, 3, 12
    picture = code_picture(counts)
    assert "3 of 255 bins are used; 6.25 % in the lowest, 18.75 % in the highest" in picture
    assert re.findall(r' d="(M[^"]*V[^"]*)"', picture) == ["M0 0V29M63 0V50", "M25 0V100"]
    assert "none" in code_picture([0, 0])


def test_a_curve_of_errors_says_where_it_begins_and_ends() -> None:
    points = [(step, 40.0 - step / 100) for step in range(0, 1000, 10)]
    picture = error_picture([*points, (1000, math.nan)])
    assert (
        "40.0 dB at step 0, 30.1 dB at step 990, lowest 30.1, highest 40.0, 1 not finite" in picture
    )
    assert picture.count("L") < 40
    assert "fewer than two" in error_picture([(0, 1.0), (5, math.nan)])
    assert "nan" not in error_picture([(3, 1.0), (3, 2.0)])  # a step that was recorded twice


def test_numbers_are_short_and_honest() -> None:
    assert [short(v) for v in (0, 1.5, 1234567, 1.2e-5, -0.00017, math.nan, -math.inf)] == [
        "0", "1.5", "1.23e6", "1.20e-5", "-1.70e-4", "NaN", "-inf",
    ]  # fmt: skip
    assert [percent(v) for v in (0, 1, 1e-9, 0.999999, 0.5)] == [
        "0",
        "100",
        "<0.01",
        "99.99",
        "50.00",
    ]


@pytest.mark.parametrize(
    "values",
    [[2.0], [0.0, 0.0], [1e10, 1e10 + 1e-6], [0.0, 5e-324], [-3.4e38, 3.4e38], [2.30258, 2.3026],
     [math.nan, 1.0, math.inf, 3.0], [40.0, 40.05]],
    ids=str,
)  # fmt: skip
def test_charts_keep_every_finite_point_within_their_axes(values: list[float]) -> None:
    line = Line(label="a", kind="low", points=list(enumerate(values)), marks=True)
    chart = part("chart", Panel(title="t", unit="u", x="step", lines=[line]))
    parsed(chart)
    marks = re.findall(r'cx="([^"]+)" cy="([^"]+)"', chart)
    assert len(marks) == sum(map(math.isfinite, values))
    for x, y in marks:
        assert LEFT <= float(x) <= WIDTH - RIGHT and TOP <= float(y) <= HEIGHT - BOTTOM
    labels = re.findall(r'text-anchor="end">([^<]+)</text>', chart)[:-1]
    assert len(labels) >= 2 and len(set(labels)) == len(labels)


def test_long_curves_keep_their_peaks_and_their_gaps() -> None:
    values = [1.0] * 100_000
    values[51_234], values[77_777] = 9.0, math.nan
    line = Line(label="a", kind="low", points=list(enumerate(values)))
    chart = part("chart", Panel(title="t", unit="u", x="step", lines=[line]))
    assert "highest 9" in chart and "1 not finite" in chart and chart.count("L") < 300
    (path,) = re.findall(r'class="low" d="([^"]+)"', chart)
    assert path.count("M") == 2


def test_the_verdict_names_what_is_wrong_and_leads_to_the_layer() -> None:
    layers = names(3)
    rows = [row for step in range(4) for i, layer in enumerate(layers)
            for row in monitored(layer, i, step)]  # fmt: skip
    broken = [
        replace(row, nonfinite=9) if (row.layer, row.role) == (layers[1], "weight") else row
        for row in rows
    ]
    verdict = diagnose(broken)
    first = verdict.worst(1)[0]
    section = verdict_section(verdict, layers)
    (body,) = parsed(section.body).all("tbody")
    cells = [cell.content for cell in body.all("td")]
    assert next(body.all("a")).attributes["href"] == "#layer-1" and cells[0] == "weight"
    assert first.symptom == cells[1] == "not finite"
    (reason, *_) = [item.content for item in parsed(section.body).all("li")]
    assert first.cause in reason and first.remedy in reason
    made = RunRecord(name="x", errors=report(layers), measured="", monitor=broken)
    assert section.body in render(made)
    assert 'id="verdict"' not in render(replace(made, monitor=()))


# saving and reading


def test_a_plain_report_saves_as_a_page(tmp_path: Path) -> None:
    found = report(names(3))
    path = found.save(tmp_path / "report.html")
    root = parsed(path.read_text(encoding="utf-8"))
    heads = [h.content for h in root.all("h2")]
    assert heads == ["Summary", "Network", "Layers"]
    with pytest.raises(ValueError, match=r"\.json, \.csv or \.html"):
        found.save(tmp_path / "report.htm")
    with pytest.raises(ValueError, match=r"ends in \.html"):
        save_page(record(["a"]), tmp_path / "a.pdf")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    train(small(runs, monitor=2, name="run"), say=quiet)
    return runs / "run"


def test_a_run_is_read_as_it_was_written(run: Path) -> None:
    found = read_run(run)
    summary = json.loads((run / "summary.json").read_text())
    assert found.accuracy == summary["accuracy"] and found.gap is not None and found.finished
    assert found.gap.value == summary["gap"]["value"]
    assert len(found.epochs) == 4 and len(found.monitor) > 0
    assert len(found.errors.rows) == len(json.loads((run / "errors.json").read_text()))
    assert found.errors.roles == [role for role in ROLES if role in found.errors.roles]


def test_the_command_writes_the_page_into_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    elsewhere = tmp_path / "other.html"
    assert main(["report", str(run), "--save", str(elsewhere)]) == 0
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()
    root = parsed(elsewhere.read_text(encoding="utf-8"))
    assert [h.content for h in root.all("h2")] == [
        "Summary", "Verdict", "Network", "Errors over the run", "Training", "Layers", "Recipe",
        "Configuration", "Environment",
    ]  # fmt: skip
    for value in ("full precision", "int8", "95 % interval", "stochastic", "torch", "batch_size"):
        assert value in root.content
    assert main(["report", str(run), "--save", str(tmp_path / "no" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_run_on_its_way_is_shown_as_far_as_it_is(run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "environment.json", "metrics.jsonl", "monitor.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    found = read_run(tmp_path)
    assert not found.finished and found.gap is None
    assert {(r.layer, r.role) for r in found.errors.rows} == {
        (r.layer, r.role) for r in read_run(run).errors.rows
    }
    assert "has not come to its end" in parsed(render(found)).content
    for name in ("environment.json", "metrics.jsonl", "monitor.jsonl"):
        (tmp_path / name).unlink()
    assert "No error was measured" in parsed(render(read_run(tmp_path))).content


STEP = '{"kind": "step", "step": 0, "branch": "baseline", "loss": 1.5, "grad_norm": null}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json: is refused|is no JSON"),
        ("config.json", '{"recipe": "int9"}', "config.json: is refused"),
        ("environment.json", "[1]", "no list of environments"),
        ("errors.json", '[{"layer": 1}]', "no rows of Row"),
        ("summary.json", '{"gap": {"x": 1}}', "no interval"),
        ("metrics.jsonl", '{"kind": 3}\n', "metrics.jsonl: damaged"),
        (
            "summary.json",
            '{"gap": {"value": "x", "low": 0, "high": 0, "n": 1, "method": ""}}',
            "no i",
        ),
        ("metrics.jsonl", STEP.replace("1.5", '"1.5"'), "metrics.jsonl: damaged"),
        ("metrics.jsonl", STEP.replace("1.5", "1e999"), "metrics.jsonl: damaged"),
        ("metrics.jsonl", STEP.replace('"step": 0', '"step": null'), "metrics.jsonl: damaged"),
        ("monitor.jsonl", "[]\n", "no record of a Monitor"),
    ],
)
def test_a_damaged_file_is_named(
    name: str, content: str, message: str, run: Path, tmp_path: Path
) -> None:
    for path in run.iterdir():
        if path.suffix in (".json", ".jsonl"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        render(read_run(tmp_path))


def test_what_a_monitor_saved_is_shown_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = quantize(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)))
    with Monitor(model, every=1, layers=None) as monitor:
        model(torch.randn(4, 6)).sum().backward()
        monitor.end_step()
    monitor.save(tmp_path / "own.jsonl")
    assert read_run(tmp_path / "own.jsonl").errors == monitor.report()
    assert main(["report", str(tmp_path / "own.jsonl")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'own.html'}\n"
    root = parsed((tmp_path / "own.html").read_text(encoding="utf-8"))
    assert len(list(root.all("figure"))) == len(monitor.rows)


def test_it_begins_with_what_the_run_came_to() -> None:
    made = record(names(20))
    worst = worst_first(made.errors.rows)[0]
    text = "".join(sentence(made))
    spot = f"the weakest spot is {worst.layer}'s {worst.role}, {in_decibels(worst.sqnr_db)}."
    behind = "banner2018 is behind full precision by 2.00 points, 95 % interval [-3.00, -1.00]; "
    assert text == behind + spot
    assert made.gap is not None
    within = replace(made, gap=replace(made.gap, high=0.01))
    noise = "within noise of full precision: a gap of -2.00 points, 95 % interval [-3.00, +1.00]; "
    assert "".join(sentence(within)).endswith(noise + spot)
    alone = replace(made, gap=None)
    assert "".join(sentence(alone)) == f"T{spot[1:]}"
    assert sentence(replace(alone, errors=Report(()))) == []
    assert "is behind full precision" in render(made)


def test_it_says_where_times_are_doubtful_and_a_monitor_would_show_more() -> None:
    made = record(names(3))
    assert not list(remarks(replace(made, load=(2.4, 2))))
    (busy,) = remarks(replace(made, load=(2.6, 2)))
    assert "busy machine" in busy and "2.6 processes wanted its 2 cores" in busy
    (more,) = remarks(replace(made, monitor=()))
    assert "--monitor 100" in more and "--monitor 100" in render(replace(made, monitor=()))


def test_small_losses_are_readable_beside_large_ones() -> None:
    points = [(1.0, 3.0), (2.0, 0.1), (3.0, 0.02)]
    panel = Panel(title="x", unit="", x="epoch", lines=[Line(label="a", points=points)], log="y")
    up = drawn(panel)["up"]
    assert [text for _, text in up] == ["0.03", "0.1", "0.3", "1", "3"]
    places = [float(y) for y, _ in up]
    assert places == sorted(places, reverse=True) and min(places) >= 8
    zero = replace(panel, lines=[Line(label="a", points=[*points, (4.0, 0.0)])])
    assert drawn(zero)["up"][0][1].startswith("0")  # which has no logarithm: a plain axis


def test_the_strip_names_layers_along_it() -> None:
    text = render(record(names(20)))
    marks = re.search(r'<p aria-hidden="true">(.*?)</p></div>', text)
    assert marks is not None
    said = [mark.replace("<wbr>", "") for mark in re.findall("<span>(.*?)</span>", marks[1])]
    assert said == [names(20)[i] for i in (0, 3, 6, 10, 13, 16)]

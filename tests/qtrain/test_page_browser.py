"""The page in a real browser: no complaint, no request, and what its script does."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from page_cases import HOSTILE, ROLES, names, nonfinite, record, report

from qtrain import Report
from qtrain.training.page import save_page
from qtrain.training.record import RunRecord

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

#: Shows a page in a frame, runs a script beside it once it is loaded, and writes down what that
#: returns, with the addresses of all that the page asked for.
HARNESS = """<!DOCTYPE html>
<meta charset="utf-8">
<iframe style="border: 0; width: 1280px; height: 800px"></iframe>
<pre id="found"></pre>
<script>
const frame = document.querySelector('iframe');
const rest = () => new Promise((done) => setTimeout(done, 50));
frame.addEventListener('load', async () => {
  await rest();
  const page = frame.contentWindow, doc = frame.contentDocument;
  const all = (selector) => [...doc.querySelectorAll(selector)];
  const one = (selector) => doc.querySelector(selector);
  const style = (selector) => page.getComputedStyle(one(selector));
  // give a control a value, as a user does who types or chooses it
  const set = (id, value) => {
    doc.getElementById(id).value = value;
    for (const kind of ['input', 'change'])
      doc.getElementById(id).dispatchEvent(new page.Event(kind));
  };
  // the layers of the table, as they are shown
  const visible = () =>
    all('#heat > tbody > tr:not([hidden]) > th').map((head) => head.textContent);
  const found = {};
  try { found.value = await (async () => {SCRIPT})(); }
  catch (error) { found.error = String(error); }
  found.requests = page.performance.getEntriesByType('resource').map((entry) => entry.name);
  document.getElementById('found').textContent = JSON.stringify(found);
});
Object.assign(frame, FRAME);
</script>
"""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=10000",
    "--dump-dom",
)  # fmt: skip


class Shown(NamedTuple):
    """What the script returned, what the browser's console said, and what the page asked for."""

    value: Any
    complaints: list[str]
    requests: list[str]


@pytest.fixture
def show(tmp_path: Path) -> Callable[..., Shown]:
    def shown(
        path: Path, script: str, *, fragment: str = "", dark: bool = False, scripts: bool = True
    ) -> Shown:
        """Run `script` on a page; scripts: whether the page's own may run."""
        frame = {} if scripts else {"sandbox": "allow-same-origin"}  # ahead of the address
        frame["src"] = f"{path.resolve().as_uri()}{fragment}"
        harness = tmp_path / "harness.html"
        text = HARNESS.replace("SCRIPT", script).replace("FRAME", json.dumps(frame))
        harness.write_text(text, encoding="utf-8")
        assert CHROMIUM is not None
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        done = subprocess.run(
            [CHROMIUM, *_FLAGS, scheme, f"--user-data-dir={tmp_path / 'profile'}",
             harness.as_uri()],
            capture_output=True, encoding="utf-8", timeout=100, check=True,
        )  # fmt: skip
        written = re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert written is not None and written[1], done.stderr
        found = json.loads(html.unescape(written[1]))
        assert "error" not in found, found
        complaints = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
        return Shown(found.get("value"), complaints, found["requests"])

    return shown


CASES: dict[str, Callable[[], RunRecord]] = {
    "twenty": lambda: record(names(20)),
    "two-hundred": lambda: record(names(200), records=3),
    "inspection": lambda: RunRecord(name="x", errors=report(names(3)), measured="one batch"),
    "not-finite": nonfinite,
    "empty": lambda: RunRecord(name="x", errors=Report(()), measured="nothing"),
    "hostile": lambda: record([f"{i}{HOSTILE}" for i in range(9)], name=HOSTILE),
    "long-names": lambda: record([f"{'very_long_name' * 12}.{i}" for i in range(9)]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: save_page(make(), folder / f"{name}.html") for name, make in CASES.items()}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_it_shows_without_a_complaint_and_fits(
    case: str, dark: bool, show: Callable[..., Shown], files: dict[str, Path]
) -> None:
    script = """
        all('#heat button[aria-expanded]').forEach((button, i) => i < 3 && button.click());
        const widths = [];
        for (const width of [360, 1280]) {
          frame.style.width = `${width}px`;
          await rest();
          widths.push(doc.documentElement.scrollWidth);
        }
        return [widths, page.stolen === undefined, style('html').backgroundColor];
    """
    background = "rgb(19, 23, 28)" if dark else "rgb(255, 255, 255)"
    assert show(files[case], script, dark=dark) == ([[360, 1280], True, background], [], [])


def test_the_policy_stops_a_script_and_a_request_that_are_not_its_own(
    show: Callable[..., Shown], files: dict[str, Path], tmp_path: Path
) -> None:
    text = files["twenty"].read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    more = '<img src="https://example.invalid/x.png"><script>window.stolen = 1</script></main>'
    bad.write_text(text.replace("</main>", more), encoding="utf-8")
    found = show(bad, "return page.stolen === undefined")
    assert found.value and found.requests == ["https://example.invalid/x.png"]  # was to be, at most
    assert len([c for c in found.complaints if "Content Security Policy" in c]) == 2


def test_it_can_be_read_without_its_script(
    show: Callable[..., Shown], files: dict[str, Path]
) -> None:
    script = """
        const count = all('.parts > details h3').length;
        all('details').forEach((details) => { details.open = true; });
        const widths = [];
        for (const width of [360, 1280]) {
          frame.style.width = `${width}px`;
          await rest();
          widths.push(doc.documentElement.scrollWidth);
        }
        return [style('.parts').display, style('.controls').display, count, widths];
    """
    found = show(files["twenty"], script, scripts=False)
    assert found.value == ["block", "none", 20, [360, 1280]]
    assert found.requests == []
    assert [c for c in found.complaints if "Blocked script execution" not in c] == []


def test_search_hides_other_layers_and_says_how_many(
    show: Callable[..., Shown], files: dict[str, Path]
) -> None:
    script = """
        doc.getElementById('filter').focus();
        doc.execCommand('insertText', false, 'LAYER2 conv1');
        return [visible(), doc.getElementById('shown').textContent];
    """
    wanted = [name for name in names(200) if "layer2" in name and "conv1" in name]
    said = f"{len(wanted)} of 200 layers"
    assert 0 < len(wanted) < 200
    assert show(files["two-hundred"], script) == ([wanted, said], [], [])


def test_layers_can_be_ordered_by_their_worst_error_and_by_a_column(
    show: Callable[..., Shown], files: dict[str, Path]
) -> None:
    values: dict[str, list[float]] = {}
    for row in CASES["two-hundred"]().errors.rows:
        values.setdefault(row.layer, []).append(round(row.sqnr_db, 1))
    column = ROLES.index("grad_input")
    script = """
        const found = [];
        for (const order of ['worst', 'network']) { set('order', order); found.push(visible()); }
        const head = all('#heat > thead th')[COLUMN];
        for (let i = 0; i < 2; i++) {
          head.querySelector('button').click();
          found.push([head.getAttribute('aria-sort'), visible()]);
        }
        return found;
    """.replace("COLUMN", str(column + 1))
    worst, network, *columns = show(files["two-hundred"], script).value
    assert [min(values[name]) for name in worst] == sorted(map(min, values.values()))
    assert network == names(200)
    assert [direction for direction, _ in columns] == ["ascending", "descending"]
    for (_, order), backwards in zip(columns, (False, True), strict=True):
        found = [values[name][column] for name in order]
        assert len(found) == 200 and found == sorted(found, reverse=backwards)


def test_a_nan_comes_first_of_the_worst(show: Callable[..., Shown], tmp_path: Path) -> None:
    made = record(names(20))
    rows = list(made.errors.rows)
    rows[100] = replace(rows[100], sqnr_db=math.nan)
    path = save_page(replace(made, errors=Report(tuple(rows))), tmp_path / "nan.html")
    assert show(path, "set('order', 'worst'); return visible()[0]").value == rows[100].layer


def test_a_layer_opens_by_a_button_and_stays_with_its_row(
    show: Callable[..., Shown], files: dict[str, Path]
) -> None:
    script = """
        const button = all('#heat button[aria-expanded]')[4];
        button.focus();  // a button that has the focus: the browser clicks it on Enter
        const focused = doc.activeElement === button && button.type === 'button';
        button.click();
        const open = button.getAttribute('aria-expanded');
        const inside = doc.getElementById(button.getAttribute('aria-controls'));
        const figures = inside.querySelectorAll('figure').length;
        all('#heat > thead th button')[0].click();
        const row = one('#inside-4').previousElementSibling;
        const name = row.cells[0].textContent;
        row.querySelector('button').click();
        const shut = one('#inside-4') === null && one('#layer-4 .body') !== null;
        return [focused, open, figures, name, shut];
    """
    wanted = [True, "true", len(ROLES), names(20)[4], True]
    assert show(files["twenty"], script) == (wanted, [], [])


def test_a_link_to_a_layer_opens_it_even_behind_a_search(
    show: Callable[..., Shown], files: dict[str, Path]
) -> None:
    script = """
        const opened = () => {
          const {tagName, textContent, ariaExpanded} = doc.activeElement;
          return [tagName, textContent, ariaExpanded];
        };
        const found = [opened()];
        set('filter', 'nothing');
        found.push(visible());
        const link = one('#summary a[href^="#layer-"]');
        link.click();
        return [...found, opened(), link.textContent];
    """
    by_address, hidden, by_link, first = show(files["twenty"], script, fragment="#layer-7").value
    assert by_address == ["BUTTON", names(20)[7], "true"]
    assert hidden == [] and by_link == ["BUTTON", first, "true"]


def test_values_appear_under_the_pointer(
    show: Callable[..., Shown], files: dict[str, Path]
) -> None:
    script = """
        const tip = doc.getElementById('tip');
        const said = [];
        for (const target of [one('.strip svg'), one('.chart')]) {
          target.scrollIntoView({block: 'center'});
          const box = target.getBoundingClientRect();
          const [x, y] = [box.left + 0.52 * box.width, box.top + box.height / 2];
          const under = doc.elementFromPoint(x, y);  // what a pointer would meet
          for (const kind of ['pointermove', 'pointerleave']) {
            const to = kind === 'pointermove' ? under : target;
            to.dispatchEvent(new page.PointerEvent(kind, {clientX: x, clientY: y, bubbles: true}));
            said.push(tip.hidden ? '' : tip.textContent);
          }
        }
        return said;
    """
    found = show(files["twenty"], script)
    strip, left, chart, left_too = found.value
    assert names(20)[10] in strip and " dB" in strip
    assert all(word in chart for word in ("step", "median: ", " to "))
    assert left == left_too == "" and found[1:] == ([], [])


def test_the_head_of_the_table_stays_in_sight(
    show: Callable[..., Shown], files: dict[str, Path]
) -> None:
    script = """
        const tops = [];
        for (const width of [360, 1280]) {
          frame.style.width = `${width}px`;
          await rest();
          all('#heat > tbody > tr')[150].scrollIntoView();
          tops.push(one('#heat > thead th').getBoundingClientRect().top);
        }
        return tops;
    """
    assert all(abs(top) <= 1 for top in show(files["two-hundred"], script).value)

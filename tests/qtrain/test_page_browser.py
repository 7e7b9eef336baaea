"""The page in a real browser: no complaint, no request, and what its script does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, browser
from page_cases import HOSTILE, names, nonfinite, record, report

from qtrain import Report
from qtrain.inspection.recorder import ROLES
from qtrain.training.page import save_page
from qtrain.training.record import RunRecord

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

CASES = {
    "twenty": lambda: record(names(20)),
    "two-hundred": lambda: record(names(200), records=3),
    "inspection": lambda: RunRecord(name="x", errors=report(names(3)), measured="one batch"),
    "not-finite": nonfinite,
    "empty": lambda: RunRecord(name="x", errors=Report(()), measured="nothing"),
    "hostile": lambda: record([f"{i}{HOSTILE}" for i in range(9)], name=HOSTILE),
    "long-names": lambda: record([f"{'very_long_name' * 12}.{i}" for i in range(9)]),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: save_page(make(), folder / f"{name}.html") for name, make in CASES.items()}


def clean(page: Page, path: Path) -> None:
    page.evaluate("0")  # what was said before this answer has arrived
    assert page.complaints == []
    assert page.requests == [path.resolve().as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("case", CASES)
def test_it_shows_without_a_complaint_and_fits(
    case: str, width: int, scheme: str, page: Page, files: dict[str, Path]
) -> None:
    page.resize(width, 800, scheme=scheme)
    page.open(files[case])
    page.evaluate(
        "document.querySelectorAll('#heat button[aria-expanded]')"
        ".forEach((button, i) => i < 3 && button.click())"
    )
    clean(page, files[case])
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("window.stolen") is None
    back = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 23, 28)"}[scheme]


def test_the_policy_stops_a_script_and_a_request_that_are_not_its_own(
    page: Page, files: dict[str, Path], tmp_path: Path
) -> None:
    text = files["twenty"].read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    more = '<img src="https://example.invalid/x.png"><script>window.stolen = 1</script></main>'
    bad.write_text(text.replace("</main>", more), encoding="utf-8")
    page.open(bad)
    assert page.evaluate("window.stolen") is None
    assert len([c for c in page.complaints if "Content Security Policy" in c]) == 2


@pytest.mark.parametrize("width", [360, 1280])
def test_it_can_be_read_without_its_script(width: int, page: Page, files: dict[str, Path]) -> None:
    page.resize(width, 800)
    page.open(files["twenty"], script=False)
    clean(page, files["twenty"])
    shown = "getComputedStyle(document.querySelector('{}')).display"
    assert page.evaluate(shown.format(".parts")) == "block"
    assert page.evaluate(shown.format(".controls")) == "none"
    assert page.evaluate("document.querySelectorAll('.parts > details h3').length") == 20
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width


#: The layers of the table, as they are shown.
VISIBLE = (
    "[...document.querySelectorAll('#heat > tbody > tr:not([hidden]) > th')]"
    ".map((head) => head.textContent)"
)


def test_search_hides_other_layers_and_says_how_many(page: Page, files: dict[str, Path]) -> None:
    page.resize(1280, 800)
    page.open(files["two-hundred"])
    page.evaluate("document.getElementById('filter').focus()")
    page.call("Input.insertText", text="LAYER2 conv1")
    wanted = [name for name in names(200) if "layer2" in name and "conv1" in name]
    assert page.evaluate(VISIBLE) == wanted and 0 < len(wanted) < 200
    said = page.evaluate("document.getElementById('shown').textContent")
    assert said == f"{len(wanted)} of 200 layers"
    clean(page, files["two-hundred"])


def test_layers_can_be_ordered_by_their_worst_error_and_by_a_column(
    page: Page, files: dict[str, Path]
) -> None:
    page.resize(1280, 800)
    page.open(files["two-hundred"])
    values: dict[str, list[float]] = {}
    for row in CASES["two-hundred"]().errors.rows:
        values.setdefault(row.layer, []).append(round(row.sqnr_db, 1))
    page.set("order", "worst")
    assert [min(values[name]) for name in page.evaluate(VISIBLE)] == sorted(
        map(min, values.values())
    )
    page.set("order", "network")
    assert page.evaluate(VISIBLE) == names(200)
    column = ROLES.index("grad_input")
    head = f"document.querySelectorAll('#heat > thead th')[{column + 1}]"
    for direction, backwards in (("ascending", False), ("descending", True)):
        page.evaluate(f"{head}.querySelector('button').click()")
        assert page.evaluate(f"{head}.getAttribute('aria-sort')") == direction
        found = [values[name][column] for name in page.evaluate(VISIBLE)]
        assert found == sorted(found, reverse=backwards)


def test_a_nan_comes_first_of_the_worst(page: Page, tmp_path: Path) -> None:
    made = record(names(20))
    rows = list(made.errors.rows)
    rows[100] = replace(rows[100], sqnr_db=math.nan)
    page.open(save_page(replace(made, errors=Report(tuple(rows))), tmp_path / "nan.html"))
    page.set("order", "worst")
    assert page.evaluate(VISIBLE)[0] == rows[100].layer


def test_a_layer_opens_by_keyboard_and_stays_with_its_row(
    page: Page, files: dict[str, Path]
) -> None:
    page.resize(1280, 800)
    page.open(files["twenty"])
    page.evaluate("document.querySelectorAll('#heat button[aria-expanded]')[4].focus()")
    page.press("Enter", 13)
    button = "document.querySelectorAll('#heat button[aria-expanded]')[4]"
    assert page.evaluate(f"{button}.getAttribute('aria-expanded')") == "true"
    inside = f"document.getElementById({button}.getAttribute('aria-controls'))"
    assert page.evaluate(f"{inside}.querySelectorAll('figure').length") == len(ROLES)
    page.evaluate("document.querySelectorAll('#heat > thead th button')[0].click()")
    row = "document.getElementById('inside-4').previousElementSibling.cells[0].textContent"
    assert page.evaluate(row) == names(20)[4]
    page.evaluate(
        "document.querySelector('#inside-4').previousElementSibling.querySelector('button').click()"
    )
    assert page.evaluate("document.getElementById('inside-4')") is None
    assert page.evaluate("document.querySelector('#layer-4 .body') !== null")
    clean(page, files["twenty"])


def test_a_link_to_a_layer_opens_it_even_behind_a_search(
    page: Page, files: dict[str, Path]
) -> None:
    page.open(files["twenty"], fragment="#layer-7")
    opened = "document.activeElement.textContent + document.activeElement.ariaExpanded"
    page.wait("document.activeElement.tagName === 'BUTTON'")
    assert page.evaluate(opened) == f"{names(20)[7]}true"
    page.set("filter", "nothing")
    assert page.evaluate(VISIBLE) == []
    page.evaluate("document.querySelector('#summary a[href^=\"#layer-\"]').click()")
    first = page.evaluate("document.querySelector('#summary a[href^=\"#layer-\"]').textContent")
    assert page.evaluate(opened) == f"{first}true"


def test_values_appear_under_the_pointer(page: Page, files: dict[str, Path]) -> None:
    page.resize(1280, 800)
    page.open(files["twenty"])
    tip = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
    for target, words in (
        (".strip svg", (names(20)[10], " dB")),
        (".chart", ("step", "median: ", " to ")),
    ):
        box = page.box(target)
        page.move(box[0] + 0.52 * box[2], box[1] + box[3] / 2)
        for word in words:
            assert word in page.evaluate(tip)
    page.move(2, 2)
    assert page.evaluate(tip) == ""
    clean(page, files["twenty"])


def test_the_head_of_the_table_stays_in_sight(page: Page, files: dict[str, Path]) -> None:
    for width in (360, 1280):
        page.resize(width, 800)
        page.open(files["two-hundred"])
        page.evaluate("document.querySelectorAll('#heat > tbody > tr')[150].scrollIntoView()")
        top = page.evaluate(
            "document.querySelector('#heat > thead th').getBoundingClientRect().top"
        )
        assert abs(top) <= 1

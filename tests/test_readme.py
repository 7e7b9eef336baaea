"""README and docs: their Python examples run as they stand, in order, in one namespace a page, and
print what the page shows; the commands are accepted, the links lead somewhere, every page is in the
site and every public name in its reference, and the layout is that of the code."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import EXAMPLE, outputs, shape

import qtrain
import quantizers

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "experiments").glob("*/README.md"))]


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def shows(page: Path) -> bool:
    """Whether a page shows what its examples print."""
    return any(shown for _, shown in EXAMPLE.findall(page.read_text(encoding="utf-8")))


def path_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


examples = [page for page in PAGES if blocks(page, "python")]
every_page = pytest.mark.cases(1000, 1)


@pytest.mark.parametrize("page", [p for p in examples if not shows(p)], ids=path_of)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, tmp_path, monkeypatch)


@every_page
@pytest.mark.parametrize("page", [p for p in examples if shows(p)], ids=path_of)
def test_examples_print_what_their_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(page, tmp_path, monkeypatch)


def run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    text = page.read_text(encoding="utf-8")
    printed = list(outputs(text, str(page), names))
    assert len(printed) == len(blocks(page, "python"))
    assert "never ran" not in "".join(printed)
    for (block, shown), said in zip(EXAMPLE.findall(text), printed, strict=True):
        assert not shown or shape(shown) == shape(said), f"{block}prints\n{said}"
    if page == README:  # the planted 3-bit layer is found
        assert names["worst"].layer == "layer2.0.conv1"
    for name in re.findall(r'\.(?:save|plot)\(.*?"(\S+?)"\)', "".join(blocks(page, "python"))):
        assert (tmp_path / name).exists(), name


def test_commands_are_those_of_the_continuous_integration() -> None:
    shell = "\n".join(blocks(README, "sh"))
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in shell
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -q -c constraints.txt -e '.[test]'" in script and "\npytest\n" in script


@every_page
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "sh")], ids=path_of)
def test_every_command_line_is_accepted(page: Path) -> None:
    from qtrain.cli import build_parser

    for line in "\n".join(blocks(page, "sh")).splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            if words and words[0] == "qtrain":
                build_parser().parse_args(words[1:])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
@pytest.mark.parametrize("page", LINKING, ids=path_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_site_and_the_readme_is_short() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    elsewhere = ("docs/experiments/", "docs/readme", "docs/changelog", "docs/contributing")
    named = [f"docs/{name}" for name in re.findall(r"(\S+\.md)\b", nav, re.MULTILINE)]
    assert sorted(n for n in named if not n.startswith(elsewhere)) == sorted(
        path_of(page.with_suffix(".md")) for page in [*PAGES[2:], *(ROOT / "docs").rglob("*.ipynb")]
    )
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_every_public_name_is_in_the_reference_once() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md")]
    wanted = [f"qtrain.{name}" for name in qtrain.__all__]
    wanted += [f"quantizers.{name}" for name in quantizers.__all__]
    assert sorted(re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE)) == sorted(wanted)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.ipynb")), ids=path_of)
def test_notebooks_run_and_print_what_they_show(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    text = "".join(f"```python\n{''.join(cell['source'])}\n```\n" for cell in cells)
    for cell, said in zip(cells, outputs(text, str(path)), strict=True):
        streams = [out for out in cell["outputs"] if out.get("name") == "stdout"]
        shown = "".join("".join(out["text"]) for out in streams)
        assert shape(shown) == shape(said), f"{''.join(cell['source'])}\nprints\n{said}"


def test_the_layout_is_what_the_rooms_say_of_themselves() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    for init in (ROOT / "qtrain").glob("*/__init__.py"):
        says = (ast.get_docstring(ast.parse(init.read_text())) or "").splitlines()[0]
        assert f"| `{init.parent.name}/` | {says} |" in lines

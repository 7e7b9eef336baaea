"""README and docs: their Python examples run as they stand, in order, in one namespace a page; the
commands are accepted, the links lead somewhere, and the layout is that of the code."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "experiments").glob("*/README.md"))]


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def path_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=path_of)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks(page, "python"):
            exec(compile(block, str(page), "exec"), names)
    assert "never ran" not in printed.getvalue()
    if page == README:  # the planted 3-bit layer is found
        assert names["worst"].layer == "layer2.0.conv1"
    for name in re.findall(r'\.(?:save|plot)\(.*?"(\S+?)"\)', "".join(blocks(page, "python"))):
        assert (tmp_path / name).exists(), name


def test_commands_are_those_of_the_continuous_integration() -> None:
    shell = "\n".join(blocks(README, "sh"))
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in shell
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -q -c constraints.txt -e '.[test]'" in script and "\npytest\n" in script


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


def test_every_page_is_linked_from_the_readme_which_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if f"](docs/{page.name})" not in text] == []
    assert len(text.splitlines()) <= 200


def test_the_layout_is_what_the_rooms_say_of_themselves() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    for init in (ROOT / "qtrain").glob("*/__init__.py"):
        says = (ast.get_docstring(ast.parse(init.read_text())) or "").splitlines()[0]
        assert f"| `{init.parent.name}/` | {says} |" in lines

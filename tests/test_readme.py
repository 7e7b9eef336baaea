"""The README's Python examples run as they stand, in order, in one namespace."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks("python"):
            exec(compile(block, str(README), "exec"), names)
    # the planted 3-bit layer is found, and the pieces the text promises were printed
    assert names["worst"].layer == "layer2.0.conv1"
    assert (tmp_path / "errors.json").exists() and "never ran" not in printed.getvalue()


def test_commands_are_those_of_the_continuous_integration() -> None:
    shell = "\n".join(blocks("sh"))
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in shell
    script = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -q -c constraints.txt -e '.[test]'" in script and "\npytest\n" in script


def test_every_command_line_is_accepted() -> None:
    from qtrain.cli import build_parser

    for line in "\n".join(blocks("sh")).splitlines():
        for command in line.split("&&"):
            words = command.split()
            if words and words[0] == "qtrain":
                build_parser().parse_args(words[1:])

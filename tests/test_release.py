"""What is given away: the data's licence, the citation's version, a whole source."""

from __future__ import annotations

import re
import sys
from importlib import resources
from pathlib import Path

import pytest

import qtrain

ROOT = Path(__file__).parents[1]


def test_the_embedded_data_comes_with_its_licence() -> None:
    own = resources.files("qtrain.data")
    text = (own / "digits.LICENSE").read_text(encoding="utf-8")
    assert (own / "digits.npz").is_file()
    for word in ("Alpaydin", "10.24432/C50P49", "CC BY 4.0", "licenses/by/4.0", "Changed"):
        assert word in text
    held = [p.name for p in (ROOT / "qtrain").rglob("*.np*")]
    assert held == ["digits.npz"]  # any other needs a licence of its own


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {qtrain.__version__}\n" in text
    for address in re.findall(r"https://arxiv.org/abs/[0-9.]+", text):
        assert address in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_the_source_that_is_given_away_is_whole() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    needed = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md"}
    assert needed | {"constraints.txt", "docs", "experiments", "qtrain", "quantizers", "tests"} <= (
        included
    )
    for name in project["project"]["license-files"]:
        assert (ROOT / name).is_file()

"""The table of the named recipes, in a terminal and in docs/recipes.md; names that miss."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from torch import nn

from qtrain import Forward, Recipe, load_recipe, quantize, recipes, save_recipe, summary
from qtrain.recipes import table
from quantizers import ClippingScaleWarning, Quantizer, int8, per_axis
from quantizers.devices.memory import eager

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
#: write the table anew, QTRAIN_WRITE_DOCS=1, where a recipe has changed
WRITE = os.environ.get("QTRAIN_WRITE_DOCS") == "1"


def every() -> list[Recipe]:
    return [recipes.get(name) for name in recipes.names()]


@pytest.mark.parametrize("module", [table, published])
def test_the_page_has_the_tables_of_the_code(module: Any) -> None:
    with eager():  # what is asked is whether a recipe runs
        wanted = module.markdown(every()) if module is table else module.markdown()
    text = PAGE.read_text(encoding="utf-8")
    begin = f"(?<={re.escape(module.__name__)} -->\n)"
    parts = re.split(begin + r"(.*?)(?=\n<!-- end)", text, flags=re.DOTALL)
    assert len(parts) == 3
    if WRITE:
        PAGE.write_text("".join([parts[0], wanted, parts[2]]), encoding="utf-8")
    else:
        assert parts[1] == wanted


def test_a_layer_that_a_recipe_refuses_or_leaves_alone_is_no_yes() -> None:
    channels = Quantizer(format=int8, granularity=per_axis(1))
    refused = Recipe(name="own", forward=Forward(input=channels))
    assert "yes" not in {published.runs(refused, layer) for layer in ("2-D", "convolution")}
    assert published.runs(recipes.fp32(), "2-D") == "no"


def test_in_a_terminal_it_has_100_columns_and_every_cell() -> None:
    text = table.text(every())
    assert max(map(len, text.splitlines())) <= 100
    found = "".join(text.split())
    assert all("".join(recipe.name.split()) in found for recipe in every())
    assert text.count("\n\n") == len(recipes.names()) - 1


def test_every_published_recipe_has_a_source_and_says_when_to_take_it() -> None:
    for recipe in every():
        assert recipe.when, recipe.name
        assert recipe.source or recipe.name == "fp32"
        doc = " ".join(getattr(recipes, recipe.name.replace("-", "_")).__doc__.split())
        for number in re.findall(r"arXiv \d{4}\.\d{5}", recipe.source):
            assert number in doc or recipe.name in ("bf16", "fp16", "int8", "banner2018", "hbfp6")


def test_what_is_left_out_is_in_the_summary_of_every_model() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for recipe in every():
        text = str(summary(quantize(net, recipe=recipe)))
        line = f"leaves out {recipe.name}: {recipe.leaves_out}"
        assert (line in text) == bool(recipe.leaves_out)
    both = str(summary(quantize(net, recipe="nvfp4", overrides={"1": "luq"})))
    assert "leaves out nvfp4: " in both and "leaves out luq: " in both


@pytest.mark.parametrize("name", recipes.names())
def test_a_name_warns_of_nothing_on_any_layer(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClippingScaleWarning)
        model = quantize(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), recipe=name)
        model(torch.randn(2, 3, 8)).sum().backward()


@pytest.mark.parametrize("name", recipes.names())
def test_it_comes_back_from_a_file(name: str, tmp_path: Path) -> None:
    recipe = recipes.get(name)
    path = save_recipe(recipe, tmp_path / "r.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_recipe(path) == recipe
    if name == "nvfp4":  # under another name it is somebody's own
        own = save_recipe(replace(recipe, name="mine"), tmp_path / "mine.yaml")
        with pytest.warns(ClippingScaleWarning):
            assert load_recipe(own) == replace(recipe, name="mine")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "int4",
            r"did you mean 'int8' at 4 bits\?.*recipes\.int8\(4\).*'hbfp4', 'luq', 'nvfp4'",
        ),
        ("fp4", "did you mean 'mxfp4', 'mxfp4-e3m0', 'nvfp4', 'fp4-all-the-way' or 'hbfp4'"),
        ("mx", "did you mean 'mxfp8', 'mxfp6', 'mxint8', 'mxfp4' or 'mxfp4-e3m0'"),
        ("nvfp8", "NVFP is of 4 bits, 'nvfp4'; of 8 there are 'mxfp8' and 'fp8'"),
        ("deepseek", "did you mean 'deepseek-v3'"),
        ("deepseek_v3", "did you mean 'deepseek-v3'"),
        ("FP8", "did you mean 'fp8'"),
        ("4over6", "did you mean 'four-over-six'"),
    ],
)
def test_near_misses(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"unknown recipe '{name}'; {hint}"):
        recipes.get(name)

"""SwitchBack, Jetfire, StatQuant and LUQ: bits of every operand, planted errors, a training run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from quantizer_checks import same_bits
from recipe_cases import CASES, LAYERS, Slots, check, divided, numbers, operands, three, trained
from recorded_results import Recorded, recorded

from qtrain import GradInput, GradWeight, Recipe, recipes
from quantizers import absmax, blocks, nearest_even, per_tensor, root_key, stochastic

ROWS, TILES, ALL = divided("int8", (1, 10**9)), divided("int8", (32, 32)), divided("int8", None)
INT4, E3M0 = divided("int4", None), divided("e3m0", None).stochastic
RULES: dict[str, tuple[Recipe, Slots]] = {
    "jetfire": (recipes.jetfire(), three(TILES, TILES, TILES.stochastic, input=TILES)),
    "luq": (recipes.luq(), three(INT4, INT4, E3M0)),
}


@pytest.mark.parametrize(("layer", "data"), CASES)
@pytest.mark.parametrize("name", RULES)
def test_operands_are_what_the_rule_says(name: str, layer: str, data: str) -> None:
    check(*RULES[name], layer, data)

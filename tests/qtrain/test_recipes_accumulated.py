"""Recipes that name an accumulator: their sums, term by term in numpy; planted errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from block_cases import normal
from recipe_cases import Array, trained
from torch import nn

from qtrain import Recipe, quantize, recipes
from qtrain.products.probe import Computed, Probe
from quantizers import accumulators

Unit = Callable[[Array, Array], Array]


class Computations(Probe):
    def __init__(self) -> None:
        self.found: list[Computed] = []

    def result(self, product: Computed) -> None:
        self.found.append(product)


# Sums of (I, K) and (J, K), in numpy --------------------------------------------------------------


def rounded(x: Array, mantissa: int, bias: int, to: Callable[[Array], Array]) -> Array:
    """Of a format whose largest value nothing comes near to."""
    exponent = np.maximum(np.frexp(x)[1] - 1, 1 - bias) - mantissa
    found: Array = np.ldexp(to(np.ldexp(x, -exponent)), exponent)
    return found


def chunked(a: Array, b: Array) -> Array:
    """1-6-9, nearest, chunks of 64."""
    total = np.zeros((len(a), len(b)))
    for first in range(0, a.shape[1], 64):
        chunk = np.zeros_like(total)
        for k in range(first, min(first + 64, a.shape[1])):
            chunk = rounded(chunk + np.outer(a[:, k], b[:, k]), 9, 31, np.rint)
        total = rounded(total + chunk, 9, 31, np.rint)
    return total


def twelve_bits(a: Array, b: Array) -> Array:
    """M7E4, toward zero, of rounded products, chunks of 16; saturating."""

    def narrow(x: Array, bias: int) -> Array:
        most = 2.0 ** (15 - bias) * (2 - 2.0**-7)
        return np.clip(rounded(x, 7, bias, np.trunc), -most, most)

    total = np.zeros((len(a), len(b)))
    for first in range(0, a.shape[1], 16):
        chunk = np.zeros_like(total)
        for k in range(first, min(first + 16, a.shape[1])):
            chunk = narrow(chunk + narrow(np.outer(a[:, k], b[:, k]), 12), 10)
        total = narrow(total + chunk, 10)
    return total


def hopper(a: Array, b: Array) -> Array:
    """32 products and the sum aligned to the largest exponent, 13 bits kept, all toward zero."""

    def exponent(x: Array, least: int) -> Array:
        return np.where(x == 0, least, np.maximum(np.frexp(x)[1] - 1, least))

    total = np.zeros((len(a), len(b)))
    for first in range(0, a.shape[1], 32):
        left, right = (x[:, first : first + 32] for x in (a, b))
        terms = left[:, None] * right[None]
        top = (exponent(left, -6)[:, None] + exponent(right, -6)[None]).max(-1)
        step = np.maximum(top, exponent(total, -126)) - 13
        parts = np.trunc(np.ldexp(terms, -step[..., None])).sum(-1)
        total = np.ldexp(parts + np.trunc(np.ldexp(total, -step)), step)
        total = rounded(total, 13, 127, np.trunc)
    return total


RULES: dict[str, tuple[Unit, int]] = {
    "ibm-fp8": (chunked, 10**9), "lba": (twelve_bits, 10**9), "deepseek-v3": (hopper, 128),
}  # fmt: skip


def check(recipe: Recipe, name: str) -> None:
    """AssertionError where a product of a linear layer is not what the rule says."""
    sums, step = RULES[name]
    torch.manual_seed(0)
    layer = nn.Linear(200, 40, bias=False)
    model, probe = quantize(nn.Sequential(copy.deepcopy(layer)), recipe=recipe), Computations()
    model[0].product.probe = probe
    x = normal(150, 200, seed=1).requires_grad_()
    model(x).backward(normal(150, 40, seed=2))
    assert [product.kind for product in probe.found] == ["forward", "grad_input", "grad_weight"]
    for product in probe.found:
        unit: Any = recipe.units[product.kind]
        if name == "lba" and product.kind != "forward":
            assert unit is None
            continue
        a, b = product.operands
        one, other = (q.one_level().unshifted().detach().double().numpy() for q in (a, b))
        scales = [None if q.scale is None else q.spread(q.scale).numpy() for q in (a, b)]
        if one.ndim == 2:  # of a layer without blocks, as the operation takes them
            other = other[0] if other.ndim == 3 else other
            one = one.T if product.kind == "grad_weight" else one
            other = other if product.kind == "forward" else other.T
        else:  # matrices
            one, other = one[0], other[0]
            scales = [None if s is None else np.broadcast_to(s[0], m.shape)
                      for s, m in zip(scales, (one, other), strict=True)]  # fmt: skip
        total = np.zeros((len(one), len(other)), np.float32)
        for first in range(0, one.shape[1], step):
            at = slice(first, min(first + step, one.shape[1]))
            part = sums(one[:, at], other[:, at]).astype(np.float32)
            if scales[0] is not None and scales[1] is not None:
                part = part * (scales[0][:, first, None] * scales[1][None, :, first])
            total = total + part
        got = product.result if product.result.dim() == 2 else product.result[0]
        assert np.array_equal(got.numpy(), total), product.kind


@pytest.mark.parametrize("name", RULES)
def test_sums_are_what_the_rule_says(name: str) -> None:
    check(recipes.get(name), name)


@pytest.mark.parametrize(
    ("name", "change"),
    [("ibm-fp8", {"chunk": 32}), ("lba", {"product": None}), ("deepseek-v3", {"kept": 23}),
     ("deepseek-v3", {"terms": 16})],
)  # fmt: skip
def test_a_planted_error_is_seen(name: str, change: dict[str, Any]) -> None:
    recipe: Any = recipes.get(name)
    own = replace(recipe.forward.accumulator, **change)
    with pytest.raises(AssertionError):
        check(replace(recipe, forward=replace(recipe.forward, accumulator=own)), name)


def test_deepseeks_promotion_is_that_of_its_blocks() -> None:
    """Which are as long, so that its unit's own changes nothing."""
    recipe: Any = recipes.deepseek_v3()
    plain = replace(recipe.forward, accumulator=accumulators.get("H100", "e4m3"))
    check(replace(recipe, forward=plain), "deepseek-v3")


@pytest.mark.parametrize("name", ["ibm-fp8", "lba"])
def test_it_trains(name: str) -> None:
    assert trained(name) < 1.2 and trained("fp32") < trained(name) + 0.1

"""Synchronised norms: the ranks of a process group are one process with all of their batches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from sync_cases import (
    CHANNELS,
    PAIR,
    Case,
    Results,
    cases,
    norm_for,
    quantized_cases,
    results,
    run_ranks,
)
from sync_jobs import converted, trained
from torch import Tensor, nn

from qtrain import quantize, summary
from qtrain.norms.deviations import range_
from qtrain.norms.recipe import NormRecipe
from qtrain.norms.samples import Cut, within
from qtrain.norms.sync import QSyncBatchNorm
from quantizers import fp16


def alone(recipe: NormRecipe, case: Case, x: Tensor, grad: Tensor) -> Results:
    """One process with the whole batch."""
    kind = nn.BatchNorm2d if case.space else nn.BatchNorm1d
    return results(norm_for(kind, recipe, case.dtype), x, grad)


def assert_one_batch(case: Case, name: str, ranks: list[Results], whole: Results) -> None:
    """Each rank has its part of what one process has."""
    for key, value in whole.items():
        got = [found[key].to(value.dtype) for found in ranks]
        if key in ("output", "grad_input"):
            together = torch.cat(got)
        elif key in ("grad_weight", "grad_bias"):  # a rank's own sums
            together = torch.stack(got).sum(0)
        else:
            assert all(torch.equal(one, got[0]) for one in got), f"{name}: {key} differs"
            together = got[0]
        rtol, atol = 1e-12, 1e-12  # float64 sums of some 50 terms, in another order
        if case.dtype == torch.float32:
            # those of fp32, of elements of up to 80 times the step between numbers at their mean
            rtol, atol = 1e-5, 1e-4
        if key == "output" and case.recipe.activation == fp16:
            rtol = 2.0**-10  # and then the nearest of another two fp16 numbers
        torch.testing.assert_close(
            together, value, rtol=rtol, atol=atol, msg=lambda m, key=key: f"{name}: {key}: {m}"
        )


def quantized_alone(case: Case) -> Results:
    """Each rank's tensors quantized on their own, then normalized as one batch."""
    q, ranks = case.recipe.input, range(len(case.batches))
    parts = [[q(t).dequantize() for t in case.of(rank)] for rank in ranks]  # type: ignore[operator]
    x, grad = (torch.cat(part) for part in zip(*parts, strict=True))
    recipe = NormRecipe(deviation=case.recipe.deviation, activation=case.recipe.activation)
    norm = norm_for(nn.BatchNorm2d, recipe, torch.float32)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(q(parameter).dequantize())  # type: ignore[operator]
    return results(norm, x, grad)


def own_sums(case: Case, rank: int, output: Tensor) -> Results:
    """The gradients of scale and shift that torch's have: of the rank's own elements."""
    x, grad = case.of(rank)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    weight, bias = (
        torch.tensor(values).view(1, CHANNELS, *[1] * len(case.space))
        for values in ([1.5, -0.5, 2.0], [0.5, 0.0, -1.0])
    )
    normalized = (output - bias) / weight
    return {"grad_weight": (grad * normalized).sum(axes), "grad_bias": grad.sum(axes)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each job returns on each of two ranks."""
    found = run_ranks("every", 2, tmp_path_factory.mktemp("ranks"))
    return {job: [rank[job] for rank in found] for job in found[0]}


@pytest.mark.parametrize("world", [2, 3], ids="{}-ranks".format)
def test_ranks_equal_one_process_with_all_batches(
    world: int, tmp_path: Path, two: dict[str, list[Any]]
) -> None:
    found = two["norms"] if world == 2 else run_ranks("norms", world, tmp_path)
    for name, case in cases(world).items():
        ranks = [rank[name] for rank in found]
        assert_one_batch(case, name, ranks, alone(case.recipe, case, *case.whole))
        for rank, own in enumerate(ranks):
            for key, value in own_sums(case, rank, own["output"]).items():
                if key in own:
                    torch.testing.assert_close(own[key], value, rtol=1e-5, atol=1e-4)
    for name, case in quantized_cases(world).items():
        single = case._replace(dtype=torch.float32)  # the quantized values are
        assert_one_batch(single, name, [rank[name] for rank in found], quantized_alone(case))
    if world == 3:  # the ranks of a group are one, the others are not among them
        x, grad = (torch.cat([PAIR.of(rank)[i] for rank in (0, 2)]) for i in range(2))
        norm = quantize(
            nn.Sequential(nn.BatchNorm2d(CHANNELS).double()), recipe="fp32", norm="linf"
        )
        whole = results(norm[0], x, grad)  # type: ignore[index]
        assert_one_batch(PAIR, "pair", [found[0]["pair"], found[2]["pair"]], whole)
        assert not torch.equal(found[1]["pair"]["mean"], whole["mean"])


def test_two_ranks_train_as_one_process(two: dict[str, list[Any]]) -> None:
    found = two["models"]
    whole = trained(converted(nn.BatchNorm2d), 0, 1)
    for rank in found:
        state = {key.removeprefix("module."): value for key, value in rank["ddp"].items()}
        assert state.keys() == whole.keys()
        for key, value in whole.items():
            # float64 sums in another order, over three steps
            torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-12, msg=key)
    for rank in found:
        for ours, plain in rank["alone"]:  # no other rank: the bits of a norm of its own
            assert ours.keys() == plain.keys()
            assert all(torch.equal(ours[key], plain[key]) for key in plain)
        assert "Expected more than 1 value per channel" in rank["refused"]
        assert rank["nothing"]["output"].shape == (0, CHANNELS, 3, 2)
        assert torch.equal(*rank["fused"])
        eager, compiled = rank["compiled"]
        for key, value in eager.items():
            torch.testing.assert_close(compiled[key], value)


def test_a_subclass_with_its_own_forward_is_synchronised_too(two: dict[str, list[Any]]) -> None:
    for torchs, own in two["subclass"]:
        assert torch.equal(own.pop("output"), 2 * torchs.pop("output"))
        assert own.keys() == torchs.keys()
        assert all(torch.equal(own[name], value) for name, value in torchs.items())


def test_one_process_is_an_ordinary_norm() -> None:
    recipe = NormRecipe(deviation=range_(3))
    case = Case(recipe, (5,), (3, 2), torch.float32)
    ours = results(norm_for(nn.SyncBatchNorm, recipe, torch.float32), *case.whole)
    plain = alone(recipe, case, *case.whole)
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


def test_synchronised_norms_are_converted_where_norms_are() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4))
    model = quantize(net, norm="range")
    assert type(model[1]) is QSyncBatchNorm
    assert summary(model).converted["1"] == "SyncBatchNorm"
    left = quantize(net)
    assert type(left[1]) is nn.SyncBatchNorm
    assert left[1] is not net[1] and summary(left).left["1"].startswith("SyncBatchNorm: norms are")


@pytest.mark.parametrize("cut", [Cut(0, 1, 12), Cut(0, 4, 3), Cut(2, 2, 5)], ids=str)
def test_the_parts_of_chunks_are_every_element_once(cut: Cut) -> None:
    for cuts in [(0, 12), (0, 4, 12), (0, 1, 1, 7, 12), tuple(range(13))]:
        seen = []
        for low, high in itertools.pairwise(cuts):
            for first, part in within(cut, low, high):
                assert part.number == 1 or part.length == cut.length
                for at in range(part.start, part.start + part.number * part.length):
                    assert low <= at < high
                    chunk = first + (at - part.start) // part.length
                    assert chunk == (at - cut.start) // cut.length
                    seen.append(at)
        assert seen == list(range(cut.start, cut.start + cut.number * cut.length))

"""Range rules against the reference and numpy, block by block."""

import numpy as np
import pytest
import reference
import torch
from quantizer_checks import needs_cuda, same_bits
from torch import Tensor

from quantizers import (
    Granularity,
    Quantizer,
    RangeRule,
    absmax,
    blocks,
    chunked_minmax,
    ema,
    int8,
    minmax,
    per_axis,
    per_sample,
    per_tensor,
    percentile,
    random_bits,
    root_key,
)

GRAINS = [
    per_tensor,
    per_axis(1),
    per_sample,
    blocks(4),
    Granularity(((0, 2), (2, 3)), rest="each"),
]
RULES = [
    (absmax, reference.absmax),
    (minmax, reference.minmax),
    (percentile(0.9), lambda values: reference.percentile(values, 0.9)),
    (percentile(0.999), lambda values: reference.percentile(values, 0.999)),
    (percentile(1.0), reference.minmax),
]
NAN, INF = float("nan"), float("inf")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """fp32, about uniform in (-1, 1) + 0.25."""
    return random_bits(root_key(seed), shape).float() / 2**31 + 0.25


@pytest.mark.parametrize("granularity", GRAINS, ids=str)
@pytest.mark.parametrize(
    ("rule", "slow"), RULES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_ranges_equal_the_reference(rule: RangeRule, slow, granularity) -> None:
    for dtype in (torch.float32, torch.float16, torch.float64):
        x = numbers(5, 3, 7).to(dtype)
        block = granularity.block_shape(x.shape)
        low, high = rule(x, block)
        assert low.dtype == high.dtype == torch.float32
        for position, indices in reference.blocks(x.shape, block):
            bounds = slow([float(x[index]) for index in indices])
            assert low[position].item() == pytest.approx(bounds[0], rel=1e-6, abs=1e-7)
            assert high[position].item() == pytest.approx(bounds[1], rel=1e-6, abs=1e-7)
            if rule in (absmax, minmax):
                assert (low[position], high[position]) == tuple(map(reference.fl32, bounds))


@pytest.mark.parametrize("rule", [absmax, minmax, chunked_minmax(2), percentile(0.9)], ids=str)
def test_ranges_do_not_depend_on_the_layout(rule: RangeRule) -> None:
    x = numbers(2, 8, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    for granularity in (per_tensor, per_axis(1), Granularity(((1, 3),), rest="each")):
        block = granularity.block_shape(x.shape)
        for a, b in zip(rule(x, block), rule(last, block), strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("fraction", [0.51, 0.75, 0.99, 0.9999, 1.0])
def test_percentile_equals_numpy(fraction: float) -> None:
    for count in (1, 2, 3, 1000, 100001):
        x = numbers(count, seed=count)
        low, high = percentile(fraction)(x, (count,))
        expected = np.quantile(x.double().numpy(), [1 - fraction, fraction])
        # fp32: one rounding of the result, positions are fp64
        assert low.item() == pytest.approx(expected[0], rel=2e-7, abs=1e-9)
        assert high.item() == pytest.approx(expected[1], rel=2e-7, abs=1e-9)


@pytest.mark.parametrize("chunks", [1, 2, 3, 16, 1000])
def test_chunked_minmax_averages_the_chunks(chunks: int) -> None:
    x = numbers(6, 4, 5)
    low, high = chunked_minmax(chunks)(x, (6, 4, 5))
    expected = reference.chunked_minmax(x.flatten().tolist(), chunks)
    assert low.item() == pytest.approx(expected[0], rel=1e-6)
    assert high.item() == pytest.approx(expected[1], rel=1e-6)


def test_chunked_minmax_takes_samples_by_default() -> None:
    x = numbers(6, 4, 5)
    low, high = chunked_minmax()(x, (6, 4, 5))
    assert low.item() == pytest.approx(x.amin((1, 2)).mean().item(), rel=1e-6)
    assert high.item() == pytest.approx(x.amax((1, 2)).mean().item(), rel=1e-6)
    low, _ = chunked_minmax()(x, (6, 1, 5))  # per channel, still averaged over samples
    assert torch.allclose(low.flatten(), x.amin(2).mean(0), rtol=1e-6)


@pytest.mark.parametrize("chunks", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "grain", [Granularity(((0, 3),)), Granularity(((0, 2), (1, 3)), rest="each")], ids=str
)
def test_a_shorter_last_block_is_chunked_by_its_own_elements(grain, chunks: int | None) -> None:
    x = numbers(8, 5, 4)
    block = grain.block_shape(x.shape)
    low, high = chunked_minmax(chunks)(x, block)
    for place, indices in reference.blocks(x.shape, block):
        own = chunks or len({index[0] for index in indices})  # its samples
        expected = reference.chunked_minmax([x[index].item() for index in indices], own)
        assert (low[place].item(), high[place].item()) == tuple(map(reference.fl32, expected))


ALL_RULES = [absmax, minmax, chunked_minmax(), chunked_minmax(3), percentile(0.9)]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_a_nonfinite_element_makes_its_own_blocks_range_nonfinite(rule, bad: float) -> None:
    for granularity in GRAINS:
        x = numbers(5, 3, 7)
        x[4, 1, 6] = bad
        block = granularity.block_shape(x.shape)
        low, high = rule(x, block)
        seen = torch.isfinite(low) & torch.isfinite(high)
        for position, indices in reference.blocks(x.shape, block):
            assert bool(seen[position]) == ((4, 1, 6) not in indices)


@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_empty_tensors_and_scalars_have_a_range(rule: RangeRule) -> None:
    for shape in ((0,), (0, 3), (3, 0, 2)):
        for granularity in (per_tensor, per_axis(0)):
            low, high = rule(torch.zeros(shape), granularity.block_shape(shape))
            assert bool((low == 0).all() and (high == 0).all()) and low.numel() > 0
    low, high = rule(torch.tensor(-2.0), ())
    assert low.shape == () and low.item() == -2 and high.item() == (2 if rule is absmax else -2)


def run(rule: RangeRule, state: dict, *values: float, training: bool = True) -> tuple:
    low, high = rule(torch.tensor(values), (len(values),), state=state, training=training)
    return low.item(), high.item()


def test_ema_follows_torchs_momentum_convention() -> None:
    rule = ema(momentum=0.25)
    state = rule.init_state((1,))
    assert run(rule, state, -2.0, 4.0, training=False) == (-2, 4)  # nothing seen: the batch's own
    assert state["steps"] == 0
    assert run(rule, state, -2.0, 4.0) == (-2, 4)  # the first range, not a tenth of it
    assert run(rule, state, -4.0, 8.0) == (-2.5, 5)  # 0.75 * old + 0.25 * new
    assert run(rule, state, -100.0, 100.0, training=False) == (-2.5, 5)
    assert (state["low"].item(), state["high"].item(), state["steps"].item()) == (-2.5, 5, 2)
    norm = torch.nn.BatchNorm1d(1, momentum=0.25, affine=False)
    norm.running_mean.fill_(4.0)
    norm(torch.tensor([[7.0], [9.0]]))
    assert norm.running_mean.item() == state["high"].item()  # 0.75 * 4 + 0.25 * 8


def test_ema_can_train_on_the_batchs_own_range() -> None:
    rule = ema(momentum=0.25, train_on="batch")
    state = rule.init_state((1,))
    run(rule, state, -2.0, 4.0)
    assert run(rule, state, -4.0, 8.0) == (-4, 8)
    assert run(rule, state, -100.0, 100.0, training=False) == (-2.5, 5)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_ema_does_not_average_a_nonfinite_batch_in_and_still_shows_it(bad: float) -> None:
    for rule in (ema(), ema(absmax), ema(train_on="batch"), ema(percentile(0.9))):
        state = rule.init_state((1,))
        assert not np.isfinite(run(rule, state, bad, 1.0)).all()
        assert state["steps"] == 0 and state["high"] == 0
        run(rule, state, -2.0, 4.0)
        before = {name: tensor.clone() for name, tensor in state.items()}
        assert not np.isfinite(run(rule, state, bad, 1.0)).all()
        assert all(torch.equal(state[name], before[name]) for name in state)
        assert not np.isfinite(run(rule, state, bad, 1.0, training=False)).all()


def test_ema_per_channel_takes_the_finite_channels() -> None:
    quantizer = Quantizer(format=int8, granularity=per_axis(1), range=ema(momentum=0.5))
    state = quantizer.init_state((None, 2))
    assert state["low"].shape == (1, 2)
    quantizer(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), state=state)
    quantizer(torch.tensor([[3.0, NAN], [-3.0, 1.0]]), state=state)
    assert state["high"].flatten().tolist() == [2.0, 2.0]


def test_ema_keeps_no_graph_and_ignores_empty_batches() -> None:
    quantizer = Quantizer(format=int8, range=ema())
    state = quantizer.init_state((None,))
    quantizer(torch.ones(3, requires_grad=True), state=state)
    assert not any(tensor.requires_grad for tensor in state.values())
    quantizer(torch.ones(0), state=state)
    assert state["steps"] == 1 and state["high"] == 1


class Running:
    """The largest magnitude of each block so far."""

    def init_state(self, compact: tuple) -> dict:
        return {"bound": torch.zeros(compact), "steps": torch.zeros((), dtype=torch.int64)}

    def __call__(self, x: Tensor, block, *, state=None, training=True) -> tuple:
        _, high = absmax(x, block)
        assert state["bound"].shape == high.shape and state["steps"].shape == ()
        if training:
            state["bound"].copy_(torch.maximum(state["bound"], high))
            state["steps"].add_(1)
        return -state["bound"], state["bound"].clone()


def test_a_users_rule_with_memory_gets_a_place_for_each_block() -> None:
    quantizer = Quantizer(format=int8, granularity=per_axis(1), range=Running())
    state = quantizer.init_state((None, 3))
    assert state["bound"].shape == (1, 3)
    quantizer(torch.full((2, 3), 127.0), state=state)
    assert quantizer(torch.ones(2, 3), state=state).scale.tolist() == [[1.0, 1.0, 1.0]]
    assert Quantizer(format=int8, granularity=per_sample).init_state((None, 3)) == {}


def test_a_users_state_has_the_shape_of_the_ranges_whatever_the_axes_of_x() -> None:
    quantizer = Quantizer(format=int8, granularity=per_axis(-1), range=Running())
    state = quantizer.init_state((None, 3))  # as a linear layer makes it
    for shape in ((2, 3), (5, 2, 3), (3,), (2, 1, 2, 3)):
        quantizer(torch.full(shape, 127.0), state=state)
    assert state["bound"].tolist() == [[127.0] * 3] and state["steps"] == 4
    whole = Quantizer(format=int8, range=Running())
    state = whole.init_state((None, 3))
    assert whole(torch.full((5, 2, 3), 127.0), state=state).scale.shape == (1, 1, 1)
    assert state["bound"].tolist() == [[127.0]]


class Bare:
    """absmax in another class, and no more than a rule must have."""

    def __call__(self, x: Tensor, block, *, state=None, training=True) -> tuple:
        return absmax(x, block)


class Empty(Bare):
    """The same, with a memory in which nothing is kept."""

    def init_state(self, compact: tuple) -> dict:
        return {}


@pytest.mark.parametrize("rule", [Bare(), Empty()], ids=["bare", "empty"])
@pytest.mark.parametrize("grain", [*GRAINS, Granularity(((-1, 2), (0, 3)), rest="each")], ids=str)
def test_a_users_rule_without_memory_works_in_blocks(rule, grain) -> None:
    own = Quantizer(format=int8, granularity=grain, range=rule)
    assert own.init_state((None, 8)) == {}
    if grain in (
        per_sample,
        Granularity(((0, 2), (2, 3)), rest="each"),
        Granularity(((-1, 2), (0, 3)), rest="each"),
    ):
        with pytest.raises(ValueError, match="granules that stay"):
            Quantizer(format=int8, granularity=grain, range=Running()).init_state((None, 8, 3))
    x = numbers(4, 8, 3)
    q, expected = own(x, state={}), Quantizer(format=int8, granularity=grain)(x)
    assert torch.equal(q.elements, expected.elements) and same_bits(q.scale, expected.scale)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: percentile(0.5), "percentile"),
        (lambda: percentile(1.1), "percentile"),
        (lambda: percentile(NAN), "percentile"),
        (lambda: percentile("0.9"), "percentile"),
        (lambda: chunked_minmax(0), "chunks"),
        (lambda: chunked_minmax(2.0), "chunks"),
        (lambda: ema(momentum=0.0), "momentum"),
        (lambda: ema(momentum=NAN), "momentum"),
        (lambda: ema(train_on="both"), "train_on"),
        (lambda: ema()(torch.ones(3), (3,)), "needs state"),
    ],
)
def test_bad_ranges_are_refused(make, word: str) -> None:
    with pytest.raises((TypeError, ValueError), match=word):
        make()


@needs_cuda
@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_cuda_ranges_equal_cpu(rule: RangeRule) -> None:
    x = numbers(5, 3, 7)
    for granularity in GRAINS:
        block = granularity.block_shape(x.shape)
        for a, b in zip(rule(x.cuda(), block), rule(x, block), strict=True):
            assert torch.allclose(a.cpu(), b, rtol=1e-6)  # means add in another order

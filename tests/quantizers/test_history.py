"""Ranges from tensors before: against numpy and TransformerEngine's delayed scaling."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from quantizer_checks import same_bits
from recorded_results import Recorded, recorded
from torch import Tensor

from quantizers import (
    Quantizer,
    RangeRule,
    Scale,
    absmax,
    blocks,
    e4m3,
    e5m2,
    ema,
    formats,
    history,
    int8,
    kernels,
    minmax,
    per_axis,
    per_tensor,
    percentile,
    root_key,
    stochastic,
    uint8,
)
from quantizers.ranges.history import History

NAN, INF = float("nan"), float("inf")
PASTS: dict[str, Any] = {
    "max of 1": history(1),
    "max of 3": history(3),
    "max of 16": history(16, rule=absmax),
    "last": history(3, use="last"),
    "previous": ema(momentum=0.25, use="previous"),
    "previous absmax": ema(absmax, use="previous"),
}


def tensors(count: int = 40, seed: int = 0) -> list[Tensor]:
    """(6, 4), fp32, of magnitudes that jump; zeros, bursts and non-finite elements among them."""
    draw = np.random.default_rng(seed)
    found = []
    for n in range(count):
        x = draw.normal(size=(6, 4)) * 2.0 ** draw.integers(-3, 4)
        if n % 5 == 3:
            x[:, draw.integers(4)] = 0
        if n % 7 in (0, 1):  # the first two too
            x[:] = 0
        if n % 9 == 4:
            x[draw.integers(6), draw.integers(4)] = [NAN, INF, -INF][n % 3]
        if n % 11 == 10:
            x[:, 1] = abs(x[:, 1]) * 1000 + 1
        found.append(torch.from_numpy(x.astype(np.float32)))
    return found


class Slow:
    """A range with a past, of one block: a list of all that was seen."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.seen, self.used = rule, [], None

    def __call__(self, values: np.ndarray, training: bool = True) -> tuple[float, float]:
        low, high = values.min(), values.max()
        if getattr(self.rule.rule, "__class__", None) is type(absmax):
            high = max(abs(low), abs(high))
            low = -high
        finite = bool(np.isfinite(values).all())
        used = (low, high) if self.used is None else self.used
        if training and finite:
            self.seen.append((low, high))
            self.move()
        return used if finite else (NAN, NAN)

    def move(self) -> None:
        if hasattr(self.rule, "window"):
            last = self.seen[-1:] if self.rule.use == "last" else self.seen[-self.rule.window :]
            short = self.rule.use == "max" and len(self.seen) < self.rule.window
            lows, highs = zip(*last, *[(0.0, 0.0)] * short, strict=True)
            found = min(lows), max(highs)
        elif self.used is None:
            found = self.seen[-1]
        else:
            momentum, two = np.float32(self.rule.momentum), np.float32(2)
            halves = [(np.float32(n) / two, o / two) for n, o in zip(self.seen[-1], self.used)]  # noqa: B905
            found = tuple(((n - o) * momentum + o) * two for n, o in halves)
        if any(found):
            self.used = found


@pytest.mark.parametrize("granularity", [per_tensor, per_axis(1)], ids=str)
@pytest.mark.parametrize("name", PASTS)
def test_ranges_equal_a_list_of_all_that_was_seen(name: str, granularity: Any) -> None:
    rule = PASTS[name]
    block = granularity.block_shape((6, 4))
    state = Quantizer(format=int8, granularity=granularity, range=rule).init_state((None, 4))
    columns = [slice(None)] if granularity == per_tensor else [slice(n, n + 1) for n in range(4)]
    slow = [Slow(rule) for _ in columns]
    moved = 0
    for x in tensors():
        for training in (False, True):
            kept = copy.deepcopy(state)
            low, high = rule(x, block, state=state, training=training)
            wanted = [one(x[:, c].numpy(), training) for one, c in zip(slow, columns, strict=True)]
            for end, got in enumerate((low, high)):
                expected = torch.tensor([w[end] for w in wanted], dtype=torch.float32)
                assert same_bits(got.flatten() + 0.0, expected + 0.0)
            if not training:
                assert all(torch.equal(state[k], kept[k]) for k in state)
        moved += bool((state["high"] != kept["high"]).any())
    assert moved > 4
    assert not any(bool(value.isnan().any()) for value in state.values())


@pytest.mark.parametrize("case", recorded("transformer_engine", "amax_and_update_history"), ids=str)
def test_scales_are_those_of_transformer_engines_delayed_scaling(case: Recorded) -> None:
    """From its second step on: its first has scale 1, ours the tensor's own, and so it goes on
    where that was zero.  Where a non-finite amax is in its window its scale stands still.

    Its largest / amax is torch's: the reciprocal rounded, then the product.  Ours is rounded once.
    """
    of = case.settings
    use: Any = {"max": "max", "most_recent": "last"}[of["algo"]]
    fmt, margin = formats.get(of["format"]), 2.0 ** of["margin"]
    scale = Scale(headroom=margin, reciprocal=True)
    quantizer = Quantizer(format=fmt, range=history(of["length"], use), scale=scale)
    state, again = quantizer.init_state((2,)), quantizer.init_state((2,))
    most, compared = torch.finfo(torch.float32).max, 0
    for t, amax in enumerate(case["amax"].tolist()):
        x = torch.tensor([amax, -amax / 2])
        assert isinstance(quantizer.range, History)
        (_, high), q = quantizer.range(x, (2,), state=state), quantizer(x, state=again)
        assert q.scale is not None
        before = case["amax"][:t].tolist()
        window = before[-of["length"] :] if use == "max" else []
        if not math.isfinite(amax):
            assert q.scale.isnan()
        elif any(before) and all(map(math.isfinite, window)):
            multiplier = (high.reciprocal() * fmt.largest / margin).clamp(max=most)
            assert same_bits(multiplier, case["multiplier"][t : t + 1])
            torch.testing.assert_close(q.scale, case["scale"][t : t + 1], rtol=2.0**-22, atol=0)
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", PASTS)
def test_the_first_tensor_has_its_own_range_and_evaluation_does_not_move(name: str) -> None:
    quantizer = Quantizer(format=e4m3, range=PASTS[name])
    own, state = replace(quantizer, range=absmax), quantizer.init_state((3,))
    first, second = torch.tensor([0.5, -3.0, 1.0]), torch.tensor([7.0, 1.0, -0.25])
    for training in (False, False, True):
        assert torch.equal(quantizer(first, state=state, training=training).scale, own(first).scale)
    assert state["steps"] == 1
    for training in (False, True):  # of the first, though it is the second that it is given
        found = quantizer(second, state=state, training=training)
        assert torch.equal(found.scale, own(first).scale)
    quantizer(torch.zeros(0), state=state)
    assert state["steps"] == 2 and not any(t.requires_grad for t in state.values())


@pytest.mark.parametrize("name", PASTS)
def test_a_burst_saturates_once_and_is_in_the_next_range(name: str) -> None:
    x, burst = torch.tensor([1.0, -0.5]), torch.tensor([1000.0, -2.0])
    for fmt, wanted in ((e4m3, 448.0), (replace(e5m2, overflow="inf"), INF), (int8, 127.0)):
        quantizer = Quantizer(format=fmt, range=PASTS[name])
        state = quantizer.init_state((2,))
        quantizer(x, state=state)
        q = quantizer(burst, state=state)
        assert q.elements[0] == wanted
        if wanted < INF:
            assert q.dequantize().tolist() == [1.0, -1.0]
        assert quantizer(burst, state=state).scale > 100 * q.scale


def test_a_nonfinite_tensor_shows_and_leaves_the_history_of_its_channel_alone() -> None:
    for rule in PASTS.values():
        quantizer = Quantizer(format=int8, granularity=per_axis(1), range=rule)
        state = quantizer.init_state((None, 2))
        quantizer(torch.tensor([[1.0, 2.0]]), state=state)
        q = quantizer(torch.tensor([[4.0, INF]]), state=state)
        assert q.scale is not None and torch.isfinite(q.scale[0]).tolist() == [True, False]
        assert state["high"][0, 0] > 1 and state["high"][0, 1] == 2 and state["steps"] == 1


def test_zeros_alone_are_no_range() -> None:
    """A dead operand does not flush the first that lives, nor drag its average towards 0."""
    for rule in PASTS.values():
        state = rule.init_state((1,))
        for _ in range(3):
            assert rule(torch.zeros(2), (2,), state=state)[1] == 0
        x = torch.tensor([-4.0, 8.0])
        for _ in range(2):
            assert rule(x, (2,), state=state)[1] == 8
    rule = history(2)
    state = rule.init_state((1,))
    for value, wanted in ((8.0, 8.0), (0.0, 8.0), (0.0, 8.0), (0.0, 8.0), (2.0, 8.0), (1.0, 2.0)):
        assert rule(torch.tensor([value]), (1,), state=state)[1] == wanted


def test_previous_is_the_average_of_a_step_before() -> None:
    now, then = ema(momentum=0.3), ema(momentum=0.3, use="previous")
    states = now.init_state((1,)), then.init_state((1,))
    last = None
    for x in tensors():
        if torch.isfinite(x).all() and x.any():
            ranges = [r(x, (6, 4), state=s) for r, s in zip((now, then), states, strict=True)]
            assert last is None or last == ranges[1]
            last = ranges[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("fmt", [int8, uint8, e4m3])
@pytest.mark.parametrize("name", PASTS)
def test_kernels_give_the_bits_of_torchs_operations(name: str, fmt: Any) -> None:
    """Also for a state with fewer axes than x, in 16 bits, and under a factor."""
    quantizer = Quantizer(format=fmt, range=PASTS[name], rounding=stochastic())
    found = []
    for eager in (False, True):
        state = quantizer.init_state((None, 4))
        parts: list[Tensor | None] = []
        with kernels.eager() if eager else torch.no_grad():
            for n, x in enumerate(tensors(20)):
                x = x.view(2, 3, 4).to(torch.bfloat16 if n % 3 == 0 else torch.float32)
                factor = torch.full((), 3.0) if n % 2 else None
                q = quantizer(x, state=state, key=root_key(n), factor=factor, training=n % 4 != 3)
                parts += [q.elements, q.scale, q.zero_point]
        found.append([*parts, *state.values()])
    for a, b in zip(*found, strict=True):
        assert (a is b is None) or same_bits(a, b)


@pytest.mark.parametrize("name", PASTS)
def test_an_average_of_states_that_begins_empty_is_a_range(name: str) -> None:
    quantizer = Quantizer(format=int8, range=PASTS[name])
    state = quantizer.init_state((4,))
    average = copy.deepcopy(state)
    x = torch.tensor([-3.0, 1.0, 2.0, 0.5])
    for _ in range(3):
        quantizer(x, state=state)
        for key in ("low", "high", "share", "lows", "highs"):
            if key in state:
                average[key].lerp_(state[key], 0.25)
    assert 0 < average["share"] < 1
    one, other = (quantizer(x, state=s, training=False) for s in (state, average))
    torch.testing.assert_close(one.scale, other.scale)
    trained = quantizer(x, state=average)
    torch.testing.assert_close(one.scale, trained.scale)
    assert average["share"] == 1
    torch.testing.assert_close(average["low"], state["low"])


def test_values() -> None:
    assert history(16) == history(16, "max", minmax) != history(16, use="last")
    assert history(16) != history(17) and hash(history(16)) == hash(history(16))
    assert ema() == ema(use="current") != ema(use="previous")
    for rule in PASTS.values():
        assert pickle.loads(pickle.dumps(rule)) == rule and eval(repr(rule), _names()) == rule
    assert str(history(16)) == "History(window=16, use='max', rule=MinMax())"
    old = pickle.loads(pickle.dumps(ema(momentum=0.5)))
    del old.__dict__["use"]  # pickled before there was one
    assert old == ema(momentum=0.5)


def _names() -> dict[str, Any]:
    return {kind.__name__: kind for kind in map(type, (history(1), ema(), minmax, absmax))}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: history(0), "window: got 0, need an integer from 1 to 65536"),
        (lambda: history(2.0), "window"),
        (lambda: history(True), "window"),
        (lambda: history(4, "mean"), "use: got 'mean', need one of max, last"),
        (lambda: history(4, rule="absmax"), "rule"),
        (lambda: history(4, rule=ema()), "rule: .*without memory"),
        (lambda: ema(history(4)), "rule: .*without memory"),
        (lambda: ema(use="last"), "use: got 'last', need one of current, previous"),
        (lambda: ema(train_on="batch", use="previous"), "use: got 'previous' with train_on"),
        (lambda: history(4)(torch.ones(3), (3,)), "needs state"),
        (lambda: Quantizer(format=e4m3, range=history(4))(torch.ones(3)), "needs state"),
        (lambda: Quantizer(format=e4m3, range=history(4))(torch.ones(3), state={}), "lows, highs"),
        (
            lambda: history(4)(torch.ones(3), (3,), state=history(5).init_state((1,))),
            r"lows of shape \(5, 1\), need \(4, 1\)",
        ),
        (
            lambda: history(4)(torch.ones(3), (1,), state=history(4).init_state((1,))),
            r"ranges of shape \(1,\), need \(3,\)",
        ),
        (
            lambda: Quantizer(format=e4m3, range=history(4), granularity=blocks(16)),
            "range: got History.*which has a memory",
        ),
        *(
            (
                lambda rule=rule, mode=mode: Quantizer(
                    format=int8, range=rule, straight_through=mode
                ),
                "straight_through: .*one range",
            )
            for rule in (history(4), ema(use="previous"), ema(train_on="batch"))
            for mode in ("inclusive", "strict")
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make: Any, word: str) -> None:
    with pytest.raises((TypeError, ValueError), match=word):
        make()


def test_any_rule_is_remembered() -> None:
    rule: RangeRule = percentile(0.9)
    quantizer = Quantizer(format=int8, range=history(2, rule=rule))
    state = quantizer.init_state((24,))
    xs = [x.flatten() for x in tensors(12) if torch.isfinite(x).all() and x.any()]
    for before, x in pairwise(xs):
        state = quantizer.init_state((24,))
        quantizer(before, state=state)
        own = replace(quantizer, range=rule)
        assert torch.equal(quantizer(x, state=state).scale, own(before).scale)

"""Every public call of `quantizers` and `qtrain`: arguments that are right, and their kinds."""

from __future__ import annotations

import functools
import math
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import qtrain
import quantizers as q
from qtrain import recipes
from qtrain.norms import deviations

from . import _api_values as kind
from ._api_values import ANYTHING, BOOL, CALLABLE, KEY, MODULE, PATTERNS, REAL, Kind


class Entry(NamedTuple):
    """A call.

    kinds   name of an argument -> what it may be
    make    a function and its right arguments, by name; those in `spread` are given by position
    names   what else an error may call its arguments
    """

    kinds: dict[str, Kind]
    make: Callable[[random.Random], tuple[Callable[..., Any], dict[str, Any]]]
    names: tuple[str, ...] = ()
    spread: str = ""


@functools.wraps(q.per_block)
def _per_block(*args: Any, **settings: Any) -> q.Granularity:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return q.per_block(*args, **settings)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))


@functools.lru_cache(maxsize=1)
def _template() -> nn.Module:
    return qtrain.quantize(plain(), bits=4, norm="range")


def converted() -> nn.Module:
    from qtrain.conversion.watch import twin

    return twin(_template())


def batch() -> tuple[Tensor, Tensor]:
    return torch.linspace(-1, 1, 12).view(4, 3), torch.tensor([0, 1, 1, 0])


def step(model: nn.Module, optimizer: Any, given: Any) -> Tensor:
    inputs, targets = given
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def entry(
    call: Callable[..., Any],
    kinds: dict[str, Kind],
    good: Callable[[], dict[str, Any]],
    **more: Any,
) -> Entry:
    return Entry(kinds, lambda draw: (call, good()), **more)


def method(
    name: str, kinds: dict[str, Kind], build: Callable[[], tuple[Any, dict[str, Any]]], **more: Any
) -> Entry:
    def make(draw: random.Random) -> tuple[Callable[..., Any], dict[str, Any]]:
        owner, good = build()
        return getattr(owner, name), good

    return Entry(kinds, make, **more)


def _say(text: str) -> None:
    """Where remarks go."""


def _scratch(name: str) -> str:
    return str(Path(tempfile.gettempdir()) / f"qtrain-fuzz-{name}")


STATE = Kind(
    lambda s: (
        s is not None
        and not (isinstance(s, dict) and all(isinstance(v, Tensor) for v in s.values()))
    )
)
EMA_STATE = Kind(lambda s: True)
NORMS = kind.mapping(lambda v: isinstance(v, Tensor) and v.numel() == 4)
SIZES = Kind(lambda v: not isinstance(v, tuple) or bool(v))
LOSS = Kind(lambda v: v is not None and (not callable(v) or isinstance(v, type)))
INPUTS = {"inputs": ANYTHING, "targets": ANYTHING, "loss": LOSS}
ORDERS = (1, 2, math.inf)
OPTIMIZER = kind.of(torch.optim.Optimizer)


def _quantizer(**settings: Any) -> q.Quantizer:
    return q.Quantizer(format=q.int8, **settings)


_INTEGER = Kind(lambda v: not isinstance(v, Tensor) and kind.integer().refuses(v))


def _numbers() -> dict[str, Entry]:
    x = torch.linspace(-2, 2, 12).view(4, 3)
    ema = q.Quantizer(format=q.uint8, range=q.ema())
    rule = {"x": REAL, "block": kind.SHAPE, "state": ANYTHING, "training": ANYTHING}
    entries = {
        "IntFormat": entry(
            q.IntFormat,
            {"bits": kind.integer(2, 16), "signed": BOOL, "symmetric": BOOL},
            lambda: {"bits": 8, "signed": True, "symmetric": False},
        ),
        "FloatFormat": entry(
            q.FloatFormat,
            {
                "exponent": kind.integer(1, 8), "mantissa": kind.integer(0, 23),
                "bias": kind.integer(-127, 254, none=True),
                "specials": kind.one_of("ieee", "fn", "finite"),
                "overflow": kind.one_of("inf", "nan", "saturate", none=True),
                "signed": BOOL, "zero": BOOL, "name": kind.STR,
            },
            lambda: {
                "exponent": 4, "mantissa": 3, "bias": 7, "specials": "fn", "overflow": "saturate",
                "signed": True, "zero": True, "name": "mine",
            },
        ),
        "FloatFormat.decode": method("decode", {"codes": kind.of(Tensor, also=_whole)},
                                     lambda: (q.e4m3, {"codes": torch.arange(5)})),
        "FloatFormat.encode": method("encode", {"elements": REAL},
                                     lambda: (q.e4m3, {"elements": torch.ones(3)})),
        "Granularity": entry(
            q.Granularity, {"sizes": SIZES, "rest": kind.one_of("whole", "each")},
            lambda: {"sizes": ((0, 1), (-1, 2)), "rest": "each"},
            names=("granularity", "axis", "block size"),
        ),
        "Granularity.block_shape": method("block_shape", {"shape": kind.SHAPE},
                                          lambda: (q.Granularity(((0, 2),)),
                                                   {"shape": (4, 3)}), names=("granularity",)),
        "per_axis": entry(q.per_axis, {"axes": kind.integer(-8, 7)},
                          lambda: {"axes": 1}, spread="axes", names=("axis",)),
        "blocks": entry(
            q.blocks, {"size": kind.integer(1, 2**31), "across": kind.integer(1, 2**31)},
            lambda: {"size": 32, "across": 2}, names=("block size",),
        ),
        "per_block": entry(
            _per_block,
            {"sizes": Kind(lambda v: not isinstance(v, dict) or bool(v)),
             "rest": kind.one_of("whole", "each")},
            lambda: {"sizes": {-1: 2}, "rest": "whole"}, names=("axis", "block size"),
        ),
        "fold": entry(q.fold, {"key": kind.INTEGERS, "value": _INTEGER},
                      lambda: {"key": q.root_key(1), "value": 3}),
        "root_key": entry(q.root_key, {"parts": kind.integer()}, lambda: {"parts": 3},
                          spread="parts"),
        "random_bits": entry(
            q.random_bits,
            {"key": kind.KEY._replace(refuses=lambda v: v is None or KEY.refuses(v)),
             "shape": kind.SHAPE, "start": kind.integer(0, 2**63)},
            lambda: {"key": q.root_key(1), "shape": (2, 3), "start": 5},
        ),
        "OFF": entry(q.OFF, {"x": kind.TENSOR, "state": ANYTHING, "key": ANYTHING,
                             "training": ANYTHING}, lambda: {"x": x}),
        "Scale": entry(
            q.Scale,
            {
                "format": kind.FLOAT, "rounding": kind.of(q.Rounding),
                "rule": kind.one_of("amax", "ocp_floor", "ocp_ceil", "even", "rceil"),
                "headroom": kind.number(2.0**-20, 2.0**20),
                "prescale": kind.number(2.0**-20, 2.0**20),
                "candidates": kind.of(tuple, also=lambda c: all(type(n) is int for n in c)),
                "by": kind.one_of("mse", "mae", "absmax"), "over": kind.of(q.Scale, none=True),
                "granularity": kind.of(q.Granularity), "reciprocal": BOOL,
            },
            lambda: {"format": q.e4m3, "rule": "amax", "rounding": q.ceil, "headroom": 1.5,
                     "prescale": 0.5, "candidates": (6, 4), "by": "mae",
                     "over": q.Scale(q.fp32, top=448), "granularity": q.per_tensor,
                     "reciprocal": False},
            names=("scale",),
        ),
        "rms": entry(q.rms, {"factor": kind.number(0, 2.0**20, above=True)},
                     lambda: {"factor": 2.5}),
        "Quantizer": entry(
            q.Quantizer,
            {
                "format": kind.FORMAT, "granularity": kind.of(q.Granularity), "range": kind.RULE,
                "scale": kind.of(q.Scale),
                "rounding": kind.of(q.Rounding),
                "straight_through": kind.one_of("identity", "inclusive", "strict"),
            },
            lambda: {"format": q.int8, "granularity": q.per_axis(0), "range": q.absmax,
                     "scale": q.Scale(q.e8m0, rounding=q.ceil), "rounding": q.stochastic(),
                     "straight_through": "identity"},
        ),
        "Quantizer()": entry(
            _quantizer(),
            {"x": REAL, "state": STATE, "key": KEY, "training": BOOL,
             "factor": kind.of(Tensor, none=True, also=_broadcasts)},
            lambda: {"x": x, "state": {}, "key": q.root_key(1), "training": True},
        ),
        "stochastic Quantizer()": entry(
            _quantizer(rounding=q.stochastic()),
            {"x": REAL, "state": STATE, "key": kind.of(Tensor, also=lambda k: not KEY.refuses(k)),
             "training": BOOL},
            lambda: {"x": x, "key": q.root_key(1)},
        ),
        "Ema Quantizer()": entry(
            ema, {"x": REAL, "state": EMA_STATE, "key": KEY, "training": BOOL},
            lambda: {"x": x, "state": ema.init_state(x.shape), "training": False},
        ),
        "Quantizer.init_state": method(
            "init_state", {"shape": Kind(lambda s: kind.SHAPE.refuses(s) and not _unknown(s))},
            lambda: (ema, {"shape": (None, 3)}),
        ),
        "Quantizer.backward": method(
            "backward", {"grad": kind.TENSOR, "x": REAL, "state": ANYTHING},
            lambda: (_quantizer(straight_through="strict"), {"grad": x, "x": x, "state": {}}),
        ),
        "absmax()": entry(q.absmax, rule, lambda: {"x": x, "block": (4, 3)},
                          names=("block",)),
        "chunked_minmax": entry(q.chunked_minmax, {"chunks": kind.integer(1, 2**31, none=True)},
                                lambda: {"chunks": 2}),
        "percentile": entry(q.percentile, {"fraction": kind.number(0.5, 1, above=True)},
                            lambda: {"fraction": 0.99}),
        "percentile()": entry(q.percentile(0.9), rule, lambda: {"x": x, "block": (4, 3)},
                          names=("block",)),
        "ema": entry(
            q.ema, {"rule": CALLABLE, "momentum": kind.number(0, 1, above=True),
                    "train_on": kind.one_of("running", "batch"),
                    "use": kind.one_of("current", "previous")},
            lambda: {"rule": q.absmax, "momentum": 0.1, "train_on": "batch", "use": "current"},
        ),
        "history": entry(
            q.history, {"window": kind.integer(1, 2**16), "use": kind.one_of("max", "last"),
                        "rule": CALLABLE},
            lambda: {"window": 16, "use": "max", "rule": q.absmax},
        ),
        "Rounding": entry(
            q.Rounding,
            {"mode": kind.one_of("floor"), "random_bits": kind.integer(0, 0)},
            lambda: {"mode": "floor", "random_bits": 0}, names=("rounding",),
        ),
        "Rounding()": entry(q.stochastic(), {"x": kind.of(Tensor, also=_wide), "bits": ANYTHING},
                            lambda: {"x": x, "bits": q.random_bits(q.root_key(1), (4, 3))}),
        "stochastic": entry(q.stochastic, {"random_bits": kind.integer(1, 23)},
                            lambda: {"random_bits": 8}),
        "round_to": entry(q.round_to, {"x": REAL, "fmt": kind.FLOAT},
                          lambda: {"x": x, "fmt": q.fp16}),
        "round_to_float": entry(
            q.round_to_float,
            {"x": kind.of(Tensor, also=_wide), "fmt": kind.FLOAT, "rounding": kind.of(q.Rounding),
             "bits": ANYTHING, "overflow": kind.one_of("inf", "nan", "saturate", none=True)},
            lambda: {"x": x, "fmt": q.e4m3},
        ),
    }  # fmt: skip
    return entries


def _whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _unknown(shape: Any) -> bool:
    return isinstance(shape, list) and shape == [None]


def _wide(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)


def _broadcasts(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.shape in ((), (1,), (3,), (4, 3))


def _conversion() -> dict[str, Entry]:
    settings = {
        "bits": kind.integer(2, 16, none=True), "recipe": kind.RECIPE, "norm": kind.NORM,
        "overrides": kind.mapping(lambda v: False, none=True),
        "seed": kind.integer(),
    }  # fmt: skip
    settings["overrides"] = Kind(lambda v: v is not None and settings_overrides.refuses(v))
    settings_overrides = kind.mapping(lambda v: v is None)

    def good() -> dict[str, Any]:
        given = {"bits": 4, "recipe": "int8", "norm": "l1", "overrides": {"0": None}}
        return {"model": plain(), **given}

    inputs, _ = batch()
    return {
        "quantize": entry(qtrain.quantize, {"model": MODULE, **settings}, good,
                          names=("overrides",)),
        "quantize_": entry(qtrain.quantize_, {"model": MODULE, **settings}, good,
                           names=("overrides",)),
        "set_recipe": entry(
            qtrain.set_recipe,
            {"model": MODULE, **{n: settings[n] for n in ("recipe", "overrides", "norm")}},
            lambda: {"model": converted(), "recipe": "int8"}, names=("overrides",)),
        "Schedule.at": method("at", {"step": kind.integer(0), "total": kind.integer(1, none=True)},
                              lambda: (qtrain.Schedule({0: "int8"}), {"step": 3})),
        "save_recipe": entry(
            qtrain.save_recipe,
            {"recipe": kind.of(qtrain.Recipe), "path": Kind(lambda v: not isinstance(v, str))},
            lambda: {"recipe": qtrain.recipes.int8(), "path": _scratch("recipe.yaml")}),
        "load_recipe": entry(qtrain.load_recipe, {"path": Kind(lambda v: True)},
                             lambda: {"path": _scratch("none.yaml")}),
        "calibrate": entry(qtrain.calibrate, {"model": MODULE, "batches": Kind(_no_batches)},
                           lambda: {"model": converted(), "batches": [inputs, (inputs, 1)]},
                           names=("layer",)),
        "plain_state_dict": entry(qtrain.plain_state_dict, {"model": MODULE},
                                  lambda: {"model": converted()}),
        "reseed": entry(qtrain.reseed, {"model": MODULE, "seed": kind.integer()},
                        lambda: {"model": converted(), "seed": 3}),
        "summary": entry(qtrain.summary, {"model": MODULE}, lambda: {"model": converted()}),
        "summary of inputs": entry(
            lambda inputs: qtrain.summary(converted(), inputs), {"inputs": Kind(_no_input)},
            lambda: {"inputs": inputs},
        ),
        "load_state_dict": entry(_loads, {"noise_count": kind.of(Tensor, also=_counts)},
                                 lambda: {"noise_count": torch.tensor(3)}),
        "Recipe.at": method("at", {"bits": kind.integer(2, 16)},
                            lambda: (recipes.int8(), {"bits": 4})),
        "Forward": entry(qtrain.Forward, {"input": kind.QUANTIZER, "weight": kind.QUANTIZER},
                         lambda: {"input": q.OFF}, names=("forward",)),
        "GradInput": entry(qtrain.GradInput,
                           {"grad_output": kind.QUANTIZER, "weight": _or_none(kind.QUANTIZER)},
                           dict),
        "GradWeight": entry(
            qtrain.GradWeight,
            {"grad_output": kind.QUANTIZER, "input": _or_none(kind.QUANTIZER),
             "unit": kind.one_of("fp32", "bf16")}, dict,
        ),
        "Recipe": entry(
            qtrain.Recipe,
            {
                "name": kind.STR, "forward": kind.of(qtrain.Forward),
                "grad_input": kind.of(qtrain.GradInput), "grad_weight": kind.of(qtrain.GradWeight),
                "activation": kind.ACTIVATION, "narrow": BOOL,
                "norm": kind.of(qtrain.NormRecipe, none=True), "with_bits": _or_none(CALLABLE),
            },
            lambda: {"name": "mine", "activation": q.fp16},
        ),
        "NormRecipe": entry(
            qtrain.NormRecipe,
            {
                "deviation": kind.of(deviations.Deviation),
                "statistics_gradient": kind.one_of("exact", "l2", "detached"),
                "input": kind.QUANTIZER, "weight": kind.QUANTIZER, "bias": kind.QUANTIZER,
                "grad_output": kind.QUANTIZER, "activation": kind.of(q.FloatFormat, none=True),
                "arithmetic": kind.of(qtrain.Arithmetic, none=True),
            },
            lambda: {"deviation": deviations.l1()},
        ),
        "Arithmetic": entry(
            qtrain.Arithmetic,
            {"format": kind.FLOAT, "accumulator": kind.FLOAT,
             "sums": kind.one_of("plain", "halved")},
            lambda: {"format": q.fp16},
        ),
        "recipes.int8": entry(recipes.int8, {"bits": kind.integer(2, 16),
                                             "unit": kind.one_of("fp32", "bf16")}, dict),
        "recipes.banner2018": entry(
            recipes.banner2018,
            {"bits": kind.integer(2, 16), "variant": kind.one_of("paper", "code", "convnet"),
             "weights": kind.one_of("tensor", "channel", none=True)}, dict),
        "recipes.get": entry(recipes.get, {"name": kind.one_of("int8"),
                                           "bits": kind.integer(2, 16, none=True)},
                             lambda: {"name": "int8", "bits": 4}, names=("recipe",)),
        "deviations.range_": entry(
            deviations.range_,
            {"chunks": kind.integer(1), "constant": kind.one_of("exact", "paper", "code"),
             "times": kind.number(0, 3e38, above=True)}, dict),
        "deviations.topk": entry(
            deviations.topk, {"k": kind.integer(1), "constant": kind.one_of("exact", "code"),
                              "times": kind.number(0, 3e38, above=True),
                              "smoothing": kind.number(0, math.nextafter(1, 0))}, dict),
    }  # fmt: skip


def _loads(noise_count: Any) -> None:
    model = converted()
    state = model.state_dict()
    state["0.product.noise_count"] = noise_count
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # what torch's own load_state_dict says of a state
        raise ValueError(str(error)) from error


def _counts(x: Tensor) -> bool:
    return x.dim() == 0 and x.dtype == torch.int64 and int(x) >= 0


def _no_batches(value: Any) -> bool:
    return not hasattr(value, "__iter__") or not isinstance(value, Tensor | list)


def _no_input(value: Any) -> bool:
    return not isinstance(value, Tensor)


def _or_none(own: Kind) -> Kind:
    return Kind(lambda v: v is not None and own.refuses(v))


def _measuring() -> dict[str, Entry]:
    samples = kind.integer(1, none=True)
    by = kind.one_of("layer", "product", "role")

    def good(**more: Any) -> dict[str, Any]:
        inputs, targets = batch()
        return {"model": converted(), "inputs": inputs, "targets": targets, **more}

    def watched() -> qtrain.Monitor:
        model = converted()
        monitor = qtrain.Monitor(model, every=1)
        step(model, sgd(model), batch())
        return monitor

    return {
        "inspect": entry(qtrain.inspect, {"model": MODULE, **INPUTS}, good, names=("layer",)),
        "accumulated": entry(
            qtrain.accumulated,
            {"model": MODULE, **INPUTS, "reference": kind.of(nn.Module, none=True),
             "samples": samples}, good,
        ),
        "sensitivity": entry(
            qtrain.sensitivity,
            {"model": MODULE, **INPUTS, "by": by, "more": ANYTHING}, good,
        ),
        "recommend": entry(
            qtrain.recommend,
            {"report": kind.of(qtrain.SensitivityReport), "cosine": kind.number(0, 1, above=True),
             "cost": kind.of(qtrain.CostReport, dict, none=True),
             "model": kind.of(nn.Module, none=True), **INPUTS, "more": ANYTHING},
            lambda: {"report": _sensitivity(), "cosine": 0.5},
        ),
        "cost": entry(lambda table=None, **k: qtrain.cost(converted(), *k.values(), table=table),
                      {"inputs": Kind(_no_input), "table": kind.of(qtrain.EnergyTable)},
                      lambda: {"inputs": batch()[0], "table": _table()}, names=("layer",)),
        "cost of a model": entry(lambda model: qtrain.cost(model, batch()[0]), {"model": MODULE},
                                 lambda: {"model": plain()}),
        "UnitCost": entry(qtrain.UnitCost, {"pj": kind.number(0), "um2": Kind(lambda v: v is None)},
                          lambda: {"pj": 0.1}),
        "EnergyTable": entry(
            qtrain.EnergyTable,
            {"name": kind.STR, "multiply": kind.mapping(lambda v: isinstance(v, qtrain.UnitCost)),
             "add": kind.mapping(lambda v: isinstance(v, qtrain.UnitCost)),
             "accumulators": kind.mapping(lambda v: isinstance(v, str)),
             "estimate": _or_none(CALLABLE)},
            lambda: {"name": "mine", "multiply": {"int8": qtrain.UnitCost(1)}, "add": {}},
            names=("format",),
        ),
        "diagnose": entry(qtrain.diagnose, {"record": kind.of(qtrain.Monitor)},
                          lambda: {"record": watched()}, names=("a Monitor", "path")),
        "compare": entry(qtrain.compare, {"a": Kind(lambda v: True), "b": Kind(lambda v: True)},
                         lambda: {"a": "runs/a", "b": "runs/b"}, names=("runs/", "run", "folder")),
        "read_monitor": entry(qtrain.read_monitor, {"path": Kind(lambda v: True)},
                              lambda: {"path": "runs/none.jsonl"}, names=("record",)),
        "Monitor": entry(
            qtrain.Monitor,
            {"model": MODULE, "every": kind.integer(1), "layers": kind.integer(1, none=True),
             "samples": kind.integer(1), "keep": kind.integer(4)},
            lambda: {"model": converted(), "every": 2, "layers": 1, "keep": 50},
        ),
        "Monitor.report": method("report", {"step": kind.integer(0, 0, none=True)},
                                 lambda: (watched(), {"step": 0})),
        "Monitor.save": method("save", {"path": Kind(lambda v: True)},
                               lambda: (watched(), {"path": _scratch("a.jsonl")}), names=("save",)),
        "Monitor.plot": method("plot", {"path": Kind(lambda v: True), "ax": ANYTHING,
                                        "layers": ANYTHING, "roles": ANYTHING},
                               lambda: (watched(), {"path": "x.wrong"}), names=("plot", "save")),
        "Monitor.load_state_dict": method("load_state_dict", {"state": Kind(lambda v: True)},
                                          lambda: (w := watched(), {"state": w.state_dict()}),
                                          names=("Monitor",)),
        "SensitivityReport.worst": method("worst", {"count": kind.integer(1), "by": ANYTHING},
                                          lambda: (_sensitivity(), {"count": 2}),
                                          names=("worst",)),
        "Report.worst": method("worst", {"count": kind.integer(1)},
                               lambda: (_report(), {"count": 2}), names=("worst",)),
        "Report.save": method("save", {"path": Kind(lambda v: True)},
                              lambda: (_report(), {"path": _scratch("a.json")}), names=("save",)),
        "CostReport.against": method("against", {"errors": kind.of(qtrain.Report)},
                                     lambda: (_cost(), {"errors": _report()})),
        "to_tensorboard": entry(
            qtrain.to_tensorboard,
            {"rows": Kind(lambda v: True), "folder": Kind(lambda v: True),
             "metrics": ANYTHING},
            lambda: {"rows": [], "folder": _scratch("events")}, names=("tensorboard",),
        ),
    }  # fmt: skip


@functools.lru_cache(maxsize=1)
def _sensitivity() -> qtrain.SensitivityReport:
    return qtrain.sensitivity(converted(), *batch(), by="layer")


@functools.lru_cache(maxsize=1)
def _report() -> qtrain.Report:
    return qtrain.inspect(converted(), *batch())


@functools.lru_cache(maxsize=1)
def _cost() -> qtrain.CostReport:
    return qtrain.cost(converted(), batch()[0])


def _table() -> qtrain.EnergyTable:
    from qtrain.hardware.energy import SZE2017

    return SZE2017


def _weights() -> dict[str, Entry]:
    order = Kind(lambda p: isinstance(p, bool) or not isinstance(p, int | float) or p not in ORDERS)
    patterns = {"only": PATTERNS, "skip": PATTERNS}

    def hook() -> dict[str, Any]:
        net = plain()
        return {"optimizer": sgd(net), "model": net, "norms": {"0.weight": torch.ones(4)}}

    def trained() -> dict[str, Any]:
        net = plain()
        return {"model": net, "optimizer": sgd(net)}

    def recorded() -> qtrain.NormHistory:
        history = qtrain.NormHistory()
        history.record(plain())
        return history

    hooks = {"optimizer": OPTIMIZER, "model": MODULE, "norms": NORMS}
    return {
        **{
            name: entry(
                getattr(qtrain, name),
                {"model": MODULE, "p": order, "skip": PATTERNS,
                 **({"learned": BOOL} if name.startswith("bound") else {})},
                lambda: {"model": plain()},
            )
            for name in ("bound_weights", "bound_weights_", "weight_norm", "weight_norm_")
        },
        "unbound_weights_": entry(qtrain.unbound_weights_, {"model": MODULE},
                                  lambda: {"model": qtrain.bound_weights(plain())}),
        "channel_norms": entry(qtrain.channel_norms, {"model": MODULE, **patterns},
                               lambda: {"model": plain()}),
        "effective_rates": entry(
            qtrain.effective_rates, {"model": MODULE, "optimizer": OPTIMIZER, **patterns}, trained),
        "CorrectedSteps": entry(qtrain.CorrectedSteps, hooks, hook, names=("norms",)),
        "NormSchedule": entry(qtrain.NormSchedule, hooks, hook, names=("norms",)),
        "CorrectedSteps.set_norms": method(
            "set_norms", {"norms": NORMS},
            lambda: (qtrain.CorrectedSteps(**hook()), {"norms": {"0.weight": torch.ones(4)}})),
        "NormHistory": entry(qtrain.NormHistory, patterns, dict),
        "NormHistory.record": method("record", {"model": MODULE},
                                     lambda: (qtrain.NormHistory(), {"model": plain()})),
        "NormHistory.at": method("at", {"epoch": kind.integer(0)},
                                 lambda: (recorded(), {"epoch": 0})),
        "NormHistory.load_state_dict": method("load_state_dict", {"state": Kind(lambda v: True)},
                                              lambda: (h := recorded(), {"state": h.state_dict()}),
                                              names=("history",)),
        "NormHistory.save": method("save", {"path": Kind(lambda v: not isinstance(v, str))},
                                   lambda: (recorded(), {"path": _scratch("norms.pt")})),
        "NormHistory.load": entry(qtrain.NormHistory.load, {"path": Kind(lambda v: True)},
                                  lambda: {"path": _scratch("none.pt")}),
        "EffectiveRates": entry(
            qtrain.EffectiveRates,
            {"model": MODULE, "optimizer": OPTIMIZER,
             "correction": kind.of(qtrain.CorrectedSteps, none=True), **patterns}, trained),
        "EffectiveRates.record": method(
            "record", {"step": kind.integer(0)},
            lambda: (qtrain.EffectiveRates(**trained()), {"step": 3})),
        "EffectiveRates.load_state_dict": method(
            "load_state_dict", {"state": Kind(lambda v: True)},
            lambda: (qtrain.EffectiveRates(**trained()), {"state": {"rows": []}})),
        "Update": entry(
            qtrain.Update,
            {"weight": ANYTHING, "rounding": ANYTHING, "compensation": ANYTHING,
             "gradient": ANYTHING, "states": ANYTHING},
            lambda: {"weight": "bf16"}, names=("Update",)),
        "Expanded": entry(
            qtrain.Expanded,
            {"format": ANYTHING, "size": kind.integer(1, 2**31), "reach": ANYTHING,
             "rounding": ANYTHING}, dict, names=("block size",)),
        "low_precision_": entry(
            qtrain.low_precision_,
            {"optimizer": OPTIMIZER, "update": kind.of(qtrain.Update),
             "model": _or_none(MODULE), "seed": kind.integer()},
            lambda: {"optimizer": sgd(plain()), "update": qtrain.Update(weight="bf16")}),
        "save_update": entry(
            qtrain.save_update,
            {"update": kind.of(qtrain.Update), "path": Kind(lambda v: not isinstance(v, str))},
            lambda: {"update": qtrain.Update(weight="bf16"), "path": _scratch("update.yaml")}),
        "training_recipe": entry(
            qtrain.training_recipe,
            {"name": kind.one_of("int8"), **{n: ANYTHING for n in _CONFIG}},
            lambda: {"name": "int8"}, names=("recipe",), spread="name"),
        "TrainConfig": entry(qtrain.TrainConfig, {"recipe": kind.one_of("int8"), **_CONFIG},
                             lambda: {"recipe": "int8"}),
        "train": entry(qtrain.train, {"config": Kind(lambda v: True), "say": _or_none(CALLABLE)},
                       lambda: {"config": None}),
    }  # fmt: skip


_STRINGS = ("model", "data", "optimizer", "schedule", "device", "runs_dir")
_CONFIG: dict[str, Kind] = {
    "bits": kind.integer(2, 16, none=True), "norm": kind.NORM, "epochs": kind.integer(1, 10**6),
    "batch_size": kind.integer(1, 10**9), "lr": kind.number(0, 3e38, none=True),
    "momentum": kind.number(0, 1, none=True), "weight_decay": kind.number(0, 3e38, none=True),
    "milestones": Kind(lambda v: not isinstance(v, tuple) or bool(v)), "seed": kind.integer(),
    **{name: Kind(lambda v: not isinstance(v, str) or v in ("x", "", "unsigned", "int8"))
       for name in _STRINGS if name != "runs_dir"},
    **dict.fromkeys(
        ("nesterov", "baseline", "capture", "resume", "overwrite", "zero_init_residual"), BOOL
    ),
    "data_dir": kind.of(str, none=True), "name": kind.of(str, none=True),
    "runs_dir": kind.of(str, also=bool), "monitor": kind.integer(1, none=True),
    "threads": kind.integer(1, none=True), "label_smoothing": kind.number(0, 1),
}  # fmt: skip

ENTRIES: dict[str, Entry] = {**_numbers(), **_conversion(), **_measuring(), **_weights()}

#: public names that are no calls with arguments of the user's: rows and reports that calls return,
#: protocols, errors, and modules whose forward is torch's
NOT_CALLED = frozenset(
    "ClippingScaleWarning Format Granularity OFF Off QTensor QuantizerLike RangeRule "
    "CheckpointError Comparison Hook CostReport CostRow Trade Matmul MonitorRow "
    "NonFiniteError RateRow Recommendation Report Row Result ScaledDotProductAttention "
    "SensitivityReport SensitivityRow Finding Verdict recipes LowPrecision UpdateReport "
    "UpdateRow Logger first_nonfinite".split()
)

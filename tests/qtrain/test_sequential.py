"""Norm, ReLU and layer that follow one another in an nn.Sequential: fused, with the same bits."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import fused_cases
import pytest
import torch
from fused_cases import assert_same_training, converted, gaussian, images, kept, record, step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qtrain import Recipe, inspect, plain_state_dict, quantize, quantize_, recipes, summary
from qtrain.conversion.watch import forget_watch
from qtrain.layers.fused import QSequential
from qtrain.training.nonfinite import first_nonfinite
from quantizers import fp16, kernels

INT8 = recipes.int8()


class Block(nn.Sequential):
    """A convolution, a norm and a ReLU, as torchvision's Conv2dNormActivation."""

    def __init__(self, inputs: int, outputs: int, relu: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            relu(inplace=True),
        )  # fmt: skip
        self.outputs = outputs


def flat() -> nn.Sequential:
    """Two passes to a layer's codes and one to its ReLU's output; one ReLU serves twice."""
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), relu,
        nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 8), nn.BatchNorm1d(8), relu,
        nn.Linear(8, 4),
    )  # fmt: skip


def seeded(make: Callable[[], nn.Module] = flat, recipe: Recipe = INT8, norm: Any = "range") -> Any:
    torch.manual_seed(0)
    return converted(make(), recipe, norm)


def module_by_module(model: nn.Module) -> nn.Module:
    """A copy that runs as torch's Sequential does."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, QSequential):
            module.forward = nn.Sequential.forward.__get__(module)  # type: ignore[method-assign]
    return other


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often norm and ReLU were one pass, up to the layer's codes or the ReLU's output."""
    return fused_cases.count_passes(monkeypatch)


CASES: dict[str, tuple[Recipe, Any, tuple[int, int]]] = {
    "int8": (INT8, "range", (2, 1)),
    "4 bits, l1": (recipes.int8(4), "l1", (2, 1)),
    "narrow fp16": (kept(INT8, fp16), "range", (2, 1)),
    "bf16": (recipes.bf16(), "range", (0, 3)),
    "fp32, range": (recipes.fp32(), "range", (0, 3)),
    "banner2018, whose norms quantize": (recipes.banner2018(), None, (0, 0)),
    "norms left": (INT8, None, (0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_bits_of_the_modules(name: str, taken: Counter[str]) -> None:
    recipe, norm, ways = CASES[name]
    model = seeded(flat, recipe, norm)
    assert isinstance(model, QSequential) == (name != "norms left")
    assert_same_training(model, module_by_module(model))
    assert (taken["layer"], taken["relu"]) == tuple(3 * n for n in ways)


def test_blocks_in_a_sequential(taken: Counter[str]) -> None:
    model = seeded(lambda: nn.Sequential(Block(3, 6), nn.MaxPool2d(2), nn.Sequential(Block(6, 8))))
    assert type(model) is type(model[2]) is nn.Sequential
    assert isinstance(model[0], Block) and type(model[2][0]) is type(model[0])
    assert "(0): QBlock(" in repr(model) and model[0].outputs == 6
    assert_same_training(model, module_by_module(model))
    assert taken == {"relu": 6}


def evaluated(model: Any, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        model(x)
    out: Tensor = model(x)
    return out


def autocast(model: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = model(x)
        return out


def eager(model: Any, x: Tensor) -> Tensor:
    with kernels.eager():
        out: Tensor = model(x)
        return out


def recomputed(model: Any, x: Tensor) -> Tensor:
    out: Tensor = checkpoint(model, x, use_reentrant=False)
    return out


def calibrated_norms(model: Any, x: Tensor) -> Tensor:
    model[1].eval()
    out: Tensor = model(x)
    return out


@pytest.mark.parametrize(
    ("run", "fewest"),
    [(evaluated, 0), (autocast, 0), (eager, 0), (recomputed, 6), (calibrated_norms, 3)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_other_ways_to_run(run: fused_cases.Run, fewest: int, taken: Counter[str]) -> None:
    model = seeded()
    model(images(8))  # ranges for evaluation
    taken.clear()
    assert_same_training(model, module_by_module(model), run=run)
    assert taken["layer"] >= fewest and (fewest > 0 or not taken)


# What is left as it was ---------------------------------------------------------------------------


class Own(Block):
    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = super().forward(input) * 2
        return out


class Pickled(Block):
    def __reduce__(self) -> Any:
        return Pickled, (3, self.outputs)


def replaced() -> nn.Module:
    model = Block(3, 4)
    model.forward = nn.Sequential.forward.__get__(model)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: Own(3, 4),
        lambda: Pickled(3, 4),
        replaced,
        lambda: Block(3, 4, nn.ReLU6),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.ReLU(), nn.Conv2d(3, 3, 1)),
        lambda: nn.ModuleList(Block(3, 4)),
    ],
    ids=["own forward", "own pickle", "replaced forward", "ReLU6", "between", "ModuleList"],
)
def test_what_is_left(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert type(quantize(model, norm="range")) is type(model)


def test_an_override_leaves_the_class() -> None:
    model: Any = nn.Sequential(nn.Sequential(*Block(3, 4)), nn.Sequential(*Block(4, 4)))
    model = quantize(model, norm="range", overrides={"0": None})
    assert type(model[0]) is nn.Sequential and type(model[1]) is QSequential


# What users do with it ----------------------------------------------------------------------------


def test_parameters_names_and_plain_state_stay() -> None:
    model = flat()
    names, parameters = list(model.state_dict()), list(model.parameters())
    assert quantize_(model, norm="range") is model and type(model) is QSequential
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(plain_state_dict(model)) == names
    flat().load_state_dict(plain_state_dict(model))
    model.load_state_dict(flat().state_dict())


def test_slices_and_items(taken: Counter[str]) -> None:
    model = seeded()
    head, tail = model[:3], model[3:]
    assert type(head) is QSequential and len(head) == 3 and len(tail) == 9
    assert head[1] is model[1] and model[-1] is tail[-1]
    assert list(head.state_dict()) == [n for n in model.state_dict() if n[:2] in ("0.", "1.", "2.")]
    want = module_by_module(model)(images())
    assert torch.equal(tail(head(images())), want)
    assert taken == {"relu": 2, "layer": 1}


def something_between(model: Any) -> None:
    model.insert(2, nn.Identity())


def another_activation(model: Any) -> None:
    model[2] = nn.GELU()


def norm_removed(model: Any) -> None:
    del model[1]


def appended(model: Any) -> None:
    for module in quantize(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), norm="range"):
        model.append(module)


def plain_norm(model: Any) -> None:
    model[1] = nn.BatchNorm2d(6)


def plain_layer(model: Any) -> None:
    model[3] = nn.Conv2d(6, 6, 1)


@pytest.mark.parametrize(
    ("edit", "layer", "relu"),
    [
        (something_between, 1, 1), (another_activation, 1, 1), (norm_removed, 1, 1),
        (appended, 2, 2), (plain_norm, 1, 1), (plain_layer, 1, 2),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)  # fmt: skip
def test_edits_after_conversion(
    edit: Callable[[Any], None], layer: int, relu: int, taken: Counter[str]
) -> None:
    model = seeded()
    edit(model)
    assert_same_training(model, module_by_module(model))
    assert taken == {"layer": 3 * layer, "relu": 3 * relu}


def by_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), by_file],
    ids=["copy", "deepcopy", "pickle", "file"],
)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_copies(copied: Any, before: bool, taken: Counter[str]) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(flat()[:6], Block(6, 5))
    model = quantize(fused_cases.prepared(model), norm="range")
    if not before:
        model(images())
    twin = copied(copy.deepcopy(model))
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert type(twin[0]) is QSequential and isinstance(twin[1], Block)
    taken.clear()
    assert_same_training(twin, model)
    assert taken == {"layer": 6, "relu": 12}


@pytest.mark.parametrize(
    "kind", ["forward", "forward_pre", "full_backward", "full_backward_pre", "replaced"]
)
@pytest.mark.parametrize("place", range(12))
def test_hooks_and_replaced_forwards_of_children(place: int, kind: str) -> None:
    model = seeded()
    for relu in (2, 5):
        model[relu].inplace = False  # torch refuses backward hooks on modules that work in place
    other = module_by_module(model)
    seen = []
    for m in (model, other):
        seen.append(record(m[place], kind))
        step(m, images())
    assert len(seen[0]) == len(seen[1]) > 0
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


def test_a_hook_may_pass_on_what_is_no_tensor() -> None:
    model = seeded()
    other = module_by_module(model)
    for m in (model, other):
        m[2] = nn.ReLU()
        m[2].register_forward_hook(lambda module, args, output: {"y": output})
        m[3].register_forward_pre_hook(lambda module, args: (args[0]["y"],))
    assert_same_training(model, other)


def test_the_first_forward_is_fused_and_warns_of_nothing(taken: Counter[str]) -> None:
    torch.manual_seed(0)
    model = quantize(fused_cases.prepared(flat()), norm="range")
    unwatched = copy.deepcopy(model)
    forget_watch(unwatched)
    assert torch.equal(model(images()), module_by_module(unwatched)(images()))
    assert taken == {"layer": 2, "relu": 1}


def test_summary_inspection_and_the_place_of_a_nan() -> None:
    model = seeded()
    model(images())
    found = summary(model, images())
    assert found.never_ran == [] and found.outside == {}
    assert found.engines is not None and set(found.engines) == {"0", "3", "8", "11"}
    rows = inspect(model, images(), loss=lambda output: output.sum()).rows
    other = module_by_module(model)
    assert str(rows) == str(inspect(other, images(), loss=lambda output: output.sum()).rows)
    for layer, role in (("1", "weight"), ("4", "bias"), ("3", "weight")):
        spoilt = copy.deepcopy(model)
        with torch.no_grad():
            getattr(spoilt.get_submodule(layer), role)[0] = float("nan")
        place = first_nonfinite(spoilt, lambda m=spoilt: m(images()).sum())  # type: ignore[misc]
        assert place == (layer, role)


@pytest.mark.filterwarnings("ignore")  # torch's own, in its tracer
def test_compiled_model_is_one_graph() -> None:
    torch._dynamo.reset()
    # no layer before a norm: its bias would have no gradient but rounding errors
    model = seeded(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), Block(3, 6)))
    own = torch.compile(model, backend="aot_eager", fullgraph=True)
    other = module_by_module(model)
    for seed in range(2):
        for a, b in zip(step(own, images(seed)), step(other, images(seed)), strict=True):
            # the norm's sums are taken in another order, and a code may fall to its neighbour
            cosine = nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0)
            assert cosine > 0.999


@pytest.mark.filterwarnings("ignore")  # torch's own, in its tracer
def test_parts_that_are_compiled() -> None:
    torch._dynamo.reset()
    model = seeded()
    want = copy.deepcopy(model)(images())
    model[3].compile(backend="aot_eager")
    model[8].product.compile(backend="aot_eager")
    torch.testing.assert_close(model(images()), want, rtol=0.1, atol=0.1)


def test_a_tracer_that_keeps_the_layers_whole() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return not isinstance(m, nn.Sequential)

    called = [node.target for node in Tracer().trace(seeded()).nodes]
    # the one ReLU that serves twice has one name
    assert called == ["input", *map(str, range(10)), "2", "11", "output"]


def test_shared_children_empty_batches_and_errors() -> None:
    norm, relu = nn.BatchNorm2d(3), nn.ReLU()
    assert type(seeded(lambda: nn.Sequential(relu, norm, relu))) is QSequential
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), norm, relu, norm, relu))
    assert_same_training(model, module_by_module(model))
    assert model(torch.zeros(0, 3, 7, 5)).shape == (0, 3, 7, 5)
    with pytest.raises(ValueError, match="got 5 channels"):
        model[1:](gaussian(4, 5, 7, 5))
    nothing = model[:0]
    assert type(nothing) is QSequential and nothing(norm) is norm

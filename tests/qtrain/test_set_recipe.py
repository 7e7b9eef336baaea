"""Another recipe for a converted model, in place, and schedules of recipes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_cases import on_two_ranks

from qtrain import (
    Forward,
    GradInput,
    GradWeight,
    Monitor,
    NormRecipe,
    Recipe,
    Schedule,
    calibrate,
    hadamard,
    inspect,
    plain_state_dict,
    quantize,
    quantize_,
    recipes,
    set_recipe,
    summary,
)
from quantizers import (
    IntFormat,
    Quantizer,
    Scale,
    blocks,
    e4m3,
    e5m2,
    e8m0,
    ema,
    floor,
    minmax,
    percentile,
    stochastic,
)


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 5))


def _normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 5),
    )


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x.view(-1, 3, 4)).flatten(1))
        return out


_MX = Quantizer(format="e4m3", granularity=blocks(4), scale=Scale(e8m0, rule="rceil"))
#: blocks along the sum, and signs of a transform that are drawn at each step
MX = Recipe(
    name="blocks",
    forward=Forward(input=_MX, weight=_MX),
    grad_input=GradInput(grad_output=_MX, weight=_MX),
    grad_weight=GradWeight(grad_output=_MX, input=_MX, transform=hadamard(4, "step")),
)

NETS: list[Callable[[], nn.Module]] = [_mlp, _normed, _Transformer]


def _batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(8, 12, generator=made), torch.randint(0, 5, (8,), generator=made)


def _step(model: nn.Module, seed: int = 1) -> list[Tensor]:
    x, y = _batch(seed)
    loss = nn.functional.cross_entropy(model(x), y)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained)]


def _trained(model: nn.Module, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        x, y = _batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _weight(**changes: object) -> Recipe:
    """int8 with another weight."""
    own = recipes.int8()
    weight = replace(own.forward.weight, **changes)  # type: ignore[type-var]
    return replace(own, name="other weight", forward=replace(own.forward, weight=weight))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("to", ["int8", "bf16", "fp32", recipes.int8(4), MX])
@pytest.mark.parametrize("first", ["int8", "bf16", "fp32", MX])
def test_it_computes_as_the_original_quantized_so(
    net: Callable[[], nn.Module], first: str | Recipe, to: str | Recipe
) -> None:
    model = quantize(net(), recipe=first, seed=7)
    assert set_recipe(model, to) is model
    other = quantize(net(), recipe=to, seed=7)
    assert _equal(_step(model), _step(other))
    assert model.state_dict().keys() == other.state_dict().keys()
    assert _equal([*model.state_dict().values()], [*other.state_dict().values()])
    assert str(summary(model)) == str(summary(other))
    assert str(model) == str(other)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("first", ["int8", "banner2018"])
def test_under_fp32_a_trained_model_is_the_plain_one_bit_for_bit(
    net: Callable[[], nn.Module], first: str
) -> None:
    model = _trained(quantize(net(), recipe=first))
    plain = net()
    plain.load_state_dict(plain_state_dict(model))
    assert not _equal(_step(copy.deepcopy(model)), _step(copy.deepcopy(plain)))
    set_recipe(model, "fp32")
    for _ in range(2):
        assert _equal(_step(model), _step(plain))
    assert _equal([*plain_state_dict(model).values()], [*plain.state_dict().values()])
    x, _ = _batch()
    for grad in (True, False):  # torch's inference fast paths among them
        with torch.set_grad_enabled(grad):
            assert torch.equal(model.eval()(x), plain.eval()(x))


def test_torchs_fast_paths_come_and_go() -> None:
    net = _Transformer()
    usual = (net.encoder.use_nested_tensor, net.encoder.layers[0].activation_relu_or_gelu)
    model = quantize(net)
    for recipe, there in (("int8", False), ("fp32", True), ("bf16", False), ("fp32", True)):
        set_recipe(model, recipe)
        now = (model.encoder.use_nested_tensor, model.encoder.layers[0].activation_relu_or_gelu)
        assert now == (usual if there else (False, 0))


def test_parameters_optimizer_and_noise_are_not_touched() -> None:
    model = _trained(quantize(_normed(), recipe="banner2018"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = [(p, p.clone(), p.requires_grad) for p in model.parameters()]
    kept = {k: v.clone() for k, v in model.state_dict().items() if "noise" in k}
    assert all(int(v) == 3 for k, v in kept.items() if k.endswith("count"))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    set_recipe(model, "int8")
    for now, (own, value, asks) in zip(model.parameters(), before, strict=True):
        assert now is own and torch.equal(now, value) and now.requires_grad == asks
    assert all(p is q for p, q in zip(held, model.parameters(), strict=True))
    assert kept.keys() == {k for k in model.state_dict() if "noise" in k}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in kept.items())


def test_the_range_of_an_operand_that_stays_stays_and_others_begin_anew() -> None:
    model = _trained(quantize(_mlp()))
    range_ = "0.product.forward_input_high"
    before = model.get_buffer(range_)
    assert before.item() > 0
    set_recipe(model, _weight(format=IntFormat(4)))
    assert model.get_buffer(range_) is before
    set_recipe(model, recipes.int8(4))
    assert model.get_buffer(range_).item() == 0
    assert model.get_buffer("0.product.forward_input_steps").item() == 0
    set_recipe(model, "bf16")
    assert range_ not in model.state_dict()
    set_recipe(model, "int8")  # what was forgotten is not remembered
    assert model.get_buffer(range_).item() == 0


def test_states_begin_on_the_models_device() -> None:
    model = quantize(_normed(), recipe="fp32").to("meta")
    set_recipe(model, "int8")
    assert {v.device.type for v in model.state_dict().values()} == {"meta"}
    assert model.to_empty(device="cpu").state_dict()["1.product.noise_count"].item() == 0


def test_to_and_fro_is_reproducible() -> None:
    def run() -> list[Tensor]:
        model = quantize(_normed(), recipe="banner2018")
        found = []
        for recipe in ("int8", "fp32", "banner2018", "int8", "banner2018"):
            found += _step(_trained(set_recipe(model, recipe), 2))
        return found

    assert _equal(run(), run())


def test_the_same_again_does_nothing() -> None:
    model = _trained(quantize(_mlp()))
    buffers = list(model.buffers())
    set_recipe(model, recipes.int8())
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))


def test_a_backward_pass_under_way_ends_as_it_began() -> None:
    x, y = _batch()
    found = []
    for switched in (False, True):
        model = quantize(_mlp())
        loss = nn.functional.cross_entropy(model(x), y)
        if switched:
            set_recipe(model, "bf16")
        found.append([*torch.autograd.grad(loss, [*model.parameters()])])
    assert _equal(*found)


def test_overrides_hold_until_others_are_given() -> None:
    own = {"0": "bf16", "3": None}
    model = quantize(_mlp(), overrides=own)
    set_recipe(model, recipes.int8(4))
    assert _equal(_step(model), _step(quantize(_mlp(), 4, overrides=own)))
    set_recipe(model, "int8", {"0": 6, "2": None})
    other = quantize(_mlp(), overrides={"0": 6, "2": None, "3": None})
    names = [model[i].product.recipe.name for i in (0, 2)]
    assert names == ["int8 at 6 bits", "fp32"]
    assert "override   2: fp32: off" in str(summary(model))
    assert torch.equal(_step(model)[1], _step(model)[1]) and model[3].__class__ is nn.Linear
    set_recipe(model, "int8", {})
    assert [model[i].product.recipe.name for i in (0, 2)] == ["int8", "int8"]
    assert "override   " not in str(summary(model))
    assert type(other[2]) is nn.Linear and type(model[2]) is not nn.Linear


def test_overrides_that_held_on_are_named_where_they_do_not_fit() -> None:
    model = quantize(_mlp(), overrides={"0": 4})
    with pytest.raises(ValueError, match=r"no bits to set.*given before hold on: overrides=\{"):
        set_recipe(model, "bf16")
    set_recipe(model, "bf16", {})


def test_norms_follow_what_was_said_beside_the_recipe() -> None:
    model = quantize(_normed(), norm="range")
    set_recipe(model, "bf16")
    other = quantize(_normed(), recipe="bf16", norm="range")
    assert _equal(_step(model), _step(other)) and str(model) == str(other)
    set_recipe(model, "bf16", norm="l1")
    other = quantize(_normed(), recipe="bf16", norm="l1")
    assert _equal(_step(model), _step(other)) and str(model) == str(other)
    set_recipe(model, "fp32", norm="l2")
    assert _equal(_step(model), _step(_normed())) and type(model[2]) is nn.BatchNorm2d


def test_a_norm_at_rest_comes_back() -> None:
    model = quantize(_normed(), recipe="banner2018")
    for _ in range(2):
        set_recipe(model, "int8")
        assert type(model[2]) is nn.BatchNorm2d and type(model[5]) is nn.LayerNorm
        set_recipe(model, "banner2018")
        assert str(model) == str(quantize(_normed(), recipe="banner2018"))


def _state(model: nn.Module) -> tuple[object, ...]:
    return str(model), str(summary(model)), [*model.state_dict()], [id(b) for b in model.buffers()]


REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("unknown", {"recipe": "int9"}, "unknown recipe 'int9'; did you mean 'int8'"),
    ("no recipe", {"recipe": 8}, "recipe: got 8, need a Recipe, a .yaml file or one of"),
    ("schedule", {"recipe": Schedule({0: "int8"})}, "got a Schedule; give its recipe of a step"),
    ("never", {"recipe": "bf16", "overrides": {"3": "int8"}}, "was not converted.*by an override"),
    ("nothing", {"recipe": "bf16", "overrides": {"9": "int8"}}, "match no layer"),
    ("bits", {"recipe": "bf16", "overrides": {"0": 4}}, r"overrides\['0'\].*no bits to set"),
]


@pytest.mark.parametrize(("name", "given", "says"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_cannot_be_changes_nothing(name: str, given: dict[str, object], says: str) -> None:
    model = quantize(_mlp(), overrides={"3": None})
    before = _state(model)
    with pytest.raises((TypeError, ValueError), match=f"(?s){says}"):
        set_recipe(model, **given)  # type: ignore[arg-type]
    assert _state(model) == before


def test_a_layer_that_refuses_is_named_and_nothing_changes() -> None:
    class Odd:
        def init_state(self, shape: object) -> object:
            return 3

        def __call__(self, x: Tensor, **others: object) -> object:
            return x

    model = quantize(_mlp())
    before = _state(model)
    with pytest.raises(TypeError, match=r"layer '2'.*init_state returned 3"):
        set_recipe(model, "bf16", {"2": replace(recipes.bf16(), forward=_forward(Odd()))})
    assert _state(model) == before


def _forward(input: object) -> object:
    return replace(recipes.bf16().forward, input=input)  # type: ignore[arg-type]


def test_norms_that_were_not_converted_are_refused() -> None:
    model = quantize(_normed())
    with pytest.raises(ValueError, match="2, 5 were not converted; quantize the original model"):
        set_recipe(model, "banner2018")
    set_recipe(model, replace(recipes.banner2018(), norm=None))
    with pytest.raises(ValueError, match="were not converted"):
        set_recipe(model, "int8", norm="range")
    left = quantize(_normed(), overrides={"2": None, "5": None})
    set_recipe(left, "banner2018")  # left on purpose, as quantize leaves them
    assert type(left[2]) is nn.BatchNorm2d


def test_deviation_none_neither_begins_nor_ends() -> None:
    model = quantize(_normed(), norm="none")
    set_recipe(model, "bf16")
    for wrong in ("l2", "range", NormRecipe()):
        with pytest.raises(ValueError, match="layer '2' has deviation none"):
            set_recipe(model, "bf16", norm=wrong)
    with pytest.raises(ValueError, match="is to have none; with none its scale is not trained"):
        set_recipe(quantize(_normed(), norm="l1"), "int8", norm="none")


def test_a_norm_of_another_class_is_refused() -> None:
    model = quantize(_normed(), norm="range")
    nn.utils.parametrize.register_parametrization(model[2], "weight", nn.Identity())
    with pytest.raises(ValueError, match="layer '2' is a ParametrizedQBatchNorm2d now"):
        set_recipe(model, "bf16")


def test_parametrized_layers_follow() -> None:
    def net() -> nn.Module:
        plain = _mlp()
        nn.utils.parametrizations.weight_norm(plain[0])
        return plain

    model = set_recipe(quantize(net()), "bf16")
    assert _equal(_step(model), _step(quantize(net(), recipe="bf16")))
    set_recipe(model, "fp32")
    assert _equal(_step(model), _step(net()))


def test_recomputed_layers_follow() -> None:
    def step(model: nn.Module) -> list[Tensor]:
        x, y = _batch()
        out = torch.utils.checkpoint.checkpoint(model, x.requires_grad_(), use_reentrant=False)
        return [*torch.autograd.grad(nn.functional.cross_entropy(out, y), [*model.parameters()])]

    model = quantize(_mlp())
    step(model)
    set_recipe(model, recipes.int8(4))
    other = quantize(_mlp(), 4)
    step(other)  # the same count of noise
    assert _equal(step(model), step(other))


def test_a_calibrated_range_serves_evaluation_after_a_switch() -> None:
    x, _ = _batch()
    model = calibrate(set_recipe(quantize(_mlp(), recipe="bf16"), "int8"), [x])
    other = calibrate(quantize(_mlp()), [x])
    assert torch.equal(model.eval()(3 * x), other.eval()(3 * x))


def test_models_that_were_not_converted_are_refused() -> None:
    for model in (_mlp(), quantize(_mlp())[0], nn.Sequential(quantize(_mlp()))):
        with pytest.raises(ValueError, match="not converted by quantize or quantize_"):
            set_recipe(model, "int8")
    with pytest.raises(ValueError, match=r"quantized already; qtrain\.set_recipe changes"):
        quantize(quantize(_mlp()), recipe="bf16")


def test_a_backward_pass_is_no_time_for_it() -> None:
    model = quantize(_mlp())
    x = _batch()[0].requires_grad_()
    x.register_hook(lambda grad: set_recipe(model, "bf16") and None)
    with pytest.raises(ValueError, match="within a backward pass"):
        model(x).sum().backward()
    assert model[0].product.recipe.name == "int8"


def test_copies_have_recipes_of_their_own() -> None:
    model = quantize(_normed(), recipe="banner2018")
    twin = copy.deepcopy(model)
    set_recipe(twin, "bf16")
    assert "banner2018" in str(summary(model)) and "bf16" in str(summary(twin))
    set_recipe(model, "bf16")
    assert _equal(_step(model), _step(twin))


def test_a_state_loads_under_the_same_recipe_alone() -> None:
    model = _trained(set_recipe(quantize(_mlp(), recipe="bf16"), "int8"))
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    same = set_recipe(quantize(_mlp(), recipe="fp32"), "int8")
    same.load_state_dict(saved)
    assert _equal(_step(same), _step(model))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*0\.product\.forward_input_high"):
        quantize(_mlp(), recipe="bf16").load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*0\.product\.forward_input_high"):
        same.load_state_dict(quantize(_mlp(), recipe="bf16").state_dict())
    same.load_state_dict(quantize(_mlp(), recipe="bf16").state_dict(), strict=False)
    same.load_state_dict(_mlp().state_dict())  # the plain model's


def test_inspect_and_monitor_show_the_recipe_in_force() -> None:
    model = quantize(_mlp())
    monitor = Monitor(model, every=1, layers=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    now: list[tuple[str | Recipe, dict[str, object]]] = [
        ("int8", {}),
        (recipes.int8(4), {}),
        ("int8", {"2": None}),
        ("fp32", {}),
    ]
    for step, (recipe, overrides) in enumerate(now):
        set_recipe(model, recipe, overrides)  # type: ignore[arg-type]
        nn.functional.cross_entropy(model(_batch()[0]), _batch()[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen = {row.layer: row.sqnr_db for row in monitor.rows if row.step == step}
        assert (
            seen.keys() == {0: {"0", "2", "3"}, 1: {"0", "2", "3"}, 2: {"0", "3"}, 3: set()}[step]
        )
    worst = [min(r.sqnr_db for r in monitor.rows if r.step == step) for step in range(2)]
    assert worst[0] > worst[1] + 15  # 4 bits less are 24 dB
    set_recipe(model, "int8")
    fine = {(r.layer, r.role): r.sqnr_db for r in inspect(model, *_batch()).rows}
    set_recipe(model, recipes.int8(4))
    coarse = {(r.layer, r.role): r.sqnr_db for r in inspect(model, *_batch()).rows}
    assert all(fine[key] > coarse[key] + 15 for key in fine if key[1] in ("input", "weight"))


COMPILED: list[str | Recipe] = [
    "int8",
    _weight(format=IntFormat(4)),
    _weight(format=IntFormat(4), rounding=floor),
    _weight(format=IntFormat(4), range=percentile(0.9)),
    replace(recipes.int8(), activation=e4m3),
    replace(recipes.int8(), activation=e5m2),
    replace(recipes.int8(), grad_input=GradInput(grad_output=Quantizer(format=IntFormat(6)))),
    replace(
        recipes.int8(),
        grad_input=GradInput(grad_output=Quantizer(format=IntFormat(6), rounding=stochastic(3))),
    ),
    "banner2018",
    "fp32",
    "int8",
    "banner2018",
]


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_a_compiled_model_never_runs_an_old_recipe() -> None:
    torch.compiler.reset()
    eager = quantize(nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6)), recipe="banner2018")
    inner = copy.deepcopy(eager)
    compiled = torch.compile(inner, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=64):
        for recipe in COMPILED:
            set_recipe(eager, recipe)
            assert set_recipe(compiled, recipe) is compiled  # type: ignore[arg-type]
            assert _equal(_step(compiled), _step(eager)), recipe  # type: ignore[arg-type]
    seen = {str(set_recipe(eager, recipe)(_batch()[0])) for recipe in COMPILED}
    assert len(seen) > len(COMPILED) / 2


RANKS = """
from torch.nn.parallel import DistributedDataParallel
from qtrain import quantize, set_recipe
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
model = DistributedDataParallel(quantize(net, recipe="bf16"))
set_recipe(model, "int8")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(rank)
for step in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
model.eval()(torch.zeros(1, 4))
model.train()(torch.zeros(1, 4))
torch.save(model.module.state_dict(), f"{folder}/rank{rank}.pt")
"""


def test_new_ranges_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    on_two_ranks(RANKS, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert "0.product.forward_input_high" in first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_schedule_is_a_function_of_the_step() -> None:
    schedule = Schedule({0.0: "int8", 0.07: recipes.int8(4), 0.9: "bf16"})
    names = [schedule.at(step, 100).name for step in range(100)]
    assert names == ["int8"] * 7 + ["int8 at 4 bits"] * 83 + ["bf16"] * 10
    assert {k: v.name for k, v in schedule.begins(100).items()} == {
        0: "int8",
        7: "int8 at 4 bits",
        90: "bf16",
    }
    assert str(schedule) == "int8, int8 at 4 bits from 0.07, bf16 from 0.9 of the run"
    assert (schedule.first.name, schedule.last.name) == ("int8", "bf16")
    steps = Schedule({50: "fp32", 0: "int8"})
    assert [steps.at(s).name for s in (0, 49, 50, 10**9)] == ["int8", "int8", "fp32", "fp32"]
    assert str(steps) == "int8, fp32 from 50" and steps.at(3, 60) == recipes.int8()
    assert Schedule({0: "int8", 0.5: "bf16"}) == Schedule({0.0: "int8", 0.5: "bf16"})


@pytest.mark.parametrize("total", range(1, 60))
def test_each_recipe_begins_where_begins_says(total: int) -> None:
    for fraction in (0.07, 0.1, 1 / 3, 0.7, 0.29, 0.999):
        schedule = Schedule({0.0: "int8", fraction: "bf16"})
        switch = [s for s in range(total) if schedule.at(s, total).name == "bf16"]
        if switch and switch[0]:
            assert schedule.begins(total) == {0: recipes.int8(), switch[0]: recipes.bf16()}
            assert switch == list(range(switch[0], total))
        else:
            with pytest.raises(ValueError, match=f"in a run of {total} steps none is under"):
                schedule.begins(total)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "need a mapping from when to a recipe"),
        ("int8", "need a mapping from when to a recipe"),
        ({0.5: "int8"}, "the first begins at 0.5; say which does at 0"),
        ({0: "int8", 0.5: "bf16", 3: "fp32"}, "not both"),
        ({0: "int8", 1.0: "bf16"}, "a fraction from 0, below 1"),
        ({0: "int8", -1: "bf16"}, "a step from 0 on"),
        ({0: "int8", 10**5000: "bf16"}, "when: got an integer of 16610 bits, need a step from 0"),
        ({0: "int8", float("nan"): "bf16"}, "a fraction from 0, below 1"),
        ({0: "int8", True: "bf16"}, "when: got True, need a fraction of the run or a step"),
        ({0: "int8", "0.5": "bf16"}, "when: got '0.5'"),
        ({0: "int9"}, r"recipes\[0\]: unknown recipe 'int9'"),
        ({0: 8}, r"recipes\[0\]: got 8, need a Recipe or the name of one"),
    ],
)
def test_what_is_no_schedule_is_refused(given: object, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        Schedule(given)  # type: ignore[arg-type]


def test_steps_outside_the_run_are_refused() -> None:
    schedule = Schedule({0: "int8", 0.5: "bf16"})
    for step, total, says in (
        (3, None, "total: got None, but int8, bf16 from 0.5 of the run is by fractions"),
        (10, 10, "step: got 10, need an integer from 0 to 9"),
        (-1, 10, "step: got -1"),
        (0, 0, "total: got 0"),
        (0, 10**5000, "total: got an integer of 16610 bits"),
    ):
        with pytest.raises(ValueError, match=says):
            schedule.at(step, total)


def test_quantize_begins_with_a_schedules_first_and_converts_for_all() -> None:
    schedule = Schedule({0: "int8", 3: "banner2018", 5: "fp32"})
    model = quantize(_normed(), recipe=schedule)
    assert "schedule   int8, banner2018 from 3, fp32 from 5" in str(summary(model))
    assert type(model[2]) is nn.BatchNorm2d
    kinds = []
    for step in range(6):
        set_recipe(model, schedule.at(step))
        _step(model)
        kinds.append((model[6].product.recipe.name, type(model[2]).__name__))
    expected = [("int8", "BatchNorm2d")] * 3 + [("banner2018", "QBatchNorm2d")] * 2
    assert kinds == [*expected, ("fp32", "BatchNorm2d")]
    assert "schedule" in str(summary(model))
    plain = quantize(_mlp(), recipe=Schedule({0.0: "int8", 0.5: "bf16"}))
    assert _equal(_step(plain), _step(quantize(_mlp())))


def test_a_schedule_that_cannot_be_followed_is_refused_at_once() -> None:
    net = _mlp()
    with pytest.raises(ValueError, match=r"overrides\['0'\]: .*'bf16' has no bits"):
        quantize_(net, recipe=Schedule({0: "int8", 9: "bf16"}), overrides={"0": 4})
    assert str(net) == str(_mlp())
    with pytest.raises(TypeError, match="bits: got 4, need None beside a Schedule"):
        quantize(net, 4, recipe=Schedule({0: "int8"}))


def test_a_run_across_a_switch_resumes_bit_for_bit() -> None:
    own = Quantizer(format=IntFormat(8), range=ema(minmax), rounding=stochastic())
    ranged = replace(recipes.int8(), name="ranged", grad_input=GradInput(grad_output=own))
    schedule = Schedule({0.0: ranged, 0.3: "bf16", 0.6: "int8"})
    total = 10

    def begun() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = quantize(_mlp(), recipe=schedule, seed=2)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
        losses = []
        for step in steps:
            set_recipe(model, schedule.at(step, total))
            optimizer.zero_grad()
            x, y = _batch(step)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    model, optimizer = begun()
    whole = run(model, optimizer, range(total))
    for stop in range(1, total):
        model, optimizer = begun()
        run(model, optimizer, range(stop))
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        model, optimizer = begun()
        set_recipe(model, schedule.at(stop - 1, total))  # under which it was saved
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        assert _equal(run(model, optimizer, range(stop, total)), whole[stop:])


def _documented() -> Callable[[Monitor], bool]:
    """The condition in docs/training.md."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    start = text.index("def is_lost_in_noise")
    names: dict[str, object] = {"math": math, "Monitor": Monitor}
    exec(text[start : text.index("\n\n\n", start)], names)
    return names["is_lost_in_noise"]  # type: ignore[return-value]


def test_the_documented_condition_stops_what_is_lost_in_noise() -> None:
    is_lost = _documented()
    coarse = Quantizer(format=IntFormat(2), rounding=stochastic())
    int2 = replace(recipes.int8(), grad_weight=GradWeight(grad_output=coarse))
    for recipe, lost in ((int2, True), (recipes.int8(), False)):
        model = quantize(_mlp(), recipe=recipe)
        with Monitor(model, every=1) as monitor:
            _trained(model, 1)
            assert is_lost(monitor) == lost
            found = [row for row in monitor.rows if row.role == "grad_weight"]
            assert len(found) == 3 and (min(row.sqnr_db for row in found) < 4.77) == lost

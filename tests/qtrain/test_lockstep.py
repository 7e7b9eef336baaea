"""lockstep: healthy runs stay in their band, a planted fault is the first to leave it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lockstep_faults import Kind, plant_
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import GradWeight, Lockstep, lockstep, quantize, recipes
from qtrain.lockstep import _Found
from qtrain.lockstep_rows import LockstepRow, Parting
from qtrain.switches import rounded_parts, switched_off
from quantizers import IntFormat, Quantizer, stochastic

Batch = tuple[Tensor, Tensor]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 48), nn.ReLU(),
        nn.Linear(48, 5),
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip


def batches(
    count: int, *, image: bool = False, seed: int = 0, growth: float = 1.0, size: int = 48
) -> list[Batch]:
    """Five noisy clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 32, generator=generator)
    found = []
    for i in range(count):
        y = torch.randint(0, 5, (size,), generator=generator)
        x = growth**i * (centres[y] + torch.randn(size, 32, generator=generator))
        found.append((x.view(size, 2, 4, 4) if image else x, y))
    return found


def case(
    name: str = "mlp", *, seed: int = 0, warm: int = 10, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = quantize({"mlp": mlp, "cnn": cnn}[name](), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in batches(warm, image=name == "cnn", seed=100 + seed):
        step(model, optimizer, batch)
    return model, optimizer


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_healthy_int8_run_stays_in_its_band(name: str, seed: int) -> None:
    model, optimizer = case(name, seed=seed)
    found = lockstep(model, optimizer, step, batches(12, image=name == "cnn", seed=seed), runs=3)
    assert found.first is None and found.steps == 12 and found.parts == ()
    nearest = found.nearest()
    assert nearest is not None and 0.3 < nearest.deviation / nearest.band < 6


@pytest.mark.parametrize("options", [{"bits": 4}, {"recipe": "bf16"}, {"norm": "range"}], ids=str)
def test_so_do_other_healthy_recipes(options: dict[str, Any]) -> None:
    model, optimizer = case("cnn", **options)
    found = lockstep(model, optimizer, step, batches(10, image=True), runs=3)
    assert found.first is None


FAULTS: list[tuple[str, str, Kind, str]] = [
    ("3", "input", "clip", "error"),
    ("3", "input", "floor", "bias"),
    ("0", "weight", "clip", "error"),
    ("5", "weight", "floor", "bias"),
    ("3", "grad_output (grad_input)", "clip", "error"),
    ("5", "grad_output (grad_weight)", "clip", "error"),
    ("3", "grad_output (grad_weight)", "nan", "not finite"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: " ".join(f[:3]))
def test_a_fault_planted_at_a_step_is_the_first_to_leave(fault: tuple[str, str, Kind, str]) -> None:
    layer, role, kind, reason = fault
    model, optimizer = case(warm=0)
    plant_(model, layer, role, kind, start=5)
    data = batches(9)
    if kind == "nan":  # what follows is NaN, too
        data = data[:6]
    found = lockstep(model, optimizer, step, data, runs=3)
    assert found.first is not None
    row = found.first.row
    assert (row.step, row.layer, row.role, row.leaves) == (5, layer, role, reason)
    assert found.parts[0] == (layer, role)
    assert all(r.leaves in ("", "deviation") for r in found.rows if r.step < 5)
    assert f"step 5, layer {layer}, {role}" in " ".join(str(found).split())


def test_a_convolutions_gradient_is_found_too() -> None:
    model, optimizer = case("cnn", warm=0)
    plant_(model, "3", "grad_output (grad_input)", "floor", start=4)
    row = lockstep(model, optimizer, step, batches(8, image=True), runs=3).first
    assert row is not None
    assert (row.row.step, row.row.layer, row.row.role) == (4, "3", "grad_output (grad_input)")


def test_a_range_that_freezes_is_found_once_the_tensor_outgrows_it() -> None:
    """It grows by 1.3 a step: two steps later a fifth of the elements at the ends is cut."""
    model, optimizer = case(warm=0)
    plant_(model, "0", "input", "freeze", start=5)
    found = lockstep(model, optimizer, step, batches(10, growth=1.3), runs=3)
    assert found.first is not None
    row = found.first.row
    assert (row.layer, row.role, row.leaves) == ("0", "input", "error") and 5 <= row.step <= 7


def test_noise_that_rows_share_leaves_where_it_adds_up() -> None:
    """Each error is healthy, but grad_weight sums 192 of them with the same noise."""
    four = Quantizer(format=IntFormat(4), rounding=stochastic())
    own = replace(recipes.int8(), grad_weight=GradWeight(grad_output=four))
    model, optimizer = case(warm=0, recipe=own)
    plant_(model, "3", "grad_output (grad_weight)", "share", start=4)
    found = lockstep(model, optimizer, step, batches(7, size=192), runs=3)
    assert found.first is not None
    row = found.first.row
    assert (row.step, row.layer, row.role, row.leaves) == (4, "3", "grad_weight", "deviation")
    assert all(not r.error or r.error < 2 for r in found.rows)


def test_parts_that_are_switched_off_are_run_in_full_precision() -> None:
    model, optimizer = case(warm=0)
    plant_(model, "3", "input", "clip", start=3)
    found = lockstep(model, optimizer, step, batches(6), runs=2)
    assert found.first is not None and found.parts[0] == ("3", "input")
    with switched_off(model, found.parts[:1]):
        again = lockstep(model, optimizer, step, batches(6), runs=2)
    assert again.first is None


def trained(model: nn.Module, count: int, seed: int) -> list[float]:
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return [step(model, optimizer, batch).item() for batch in batches(count)]


def test_both_runs_are_the_models_and_the_unconverted_networks_bit_for_bit() -> None:
    """Dropout too: every run has the random state that the training would have."""
    torch.manual_seed(0)
    net = mlp()
    model = quantize(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(3)
    found = lockstep(model, optimizer, step, batches(6), runs=2)
    assert list(found.losses["quantized"]) == trained(model, 6, 3)
    assert list(found.losses["reference"]) == trained(net, 6, 3)
    assert len({own[-1] for own in found.losses.values()}) == 4


def test_model_optimizer_and_random_state_are_left_as_they_were() -> None:
    model, optimizer = case("cnn")
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state = torch.get_rng_state()
    lockstep(model, optimizer, step, batches(2, image=True), runs=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, before[0][name]) for name, a in model.state_dict().items())
    assert str(optimizer.state_dict()) == str(before[1])
    now = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(grads, now, strict=True))
    assert all(getattr(m, "probe", None) is None for m in model.modules())


def test_beside_bf16_the_reference_rounds_what_the_model_rounds() -> None:
    model, optimizer = case(overrides={"0": None})
    exact, half = (
        lockstep(model, optimizer, step, batches(3), runs=2, reference=kind)
        for kind in ("fp32", "bf16")
    )
    assert exact.losses["quantized"] == half.losses["quantized"]
    assert exact.losses["reference"] != half.losses["reference"]
    (first,) = (r for r in half.rows if (r.step, r.layer, r.role) == (0, "0", "output"))
    assert first.deviation == 0  # left by an override: full precision in both
    assert half.first is None and half.reference == "bf16"


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.shared = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.shared(self.shared(x).relu()).mean(1)[:, :5]


def test_products_within_attention_and_every_call_of_a_shared_layer_are_seen() -> None:
    torch.manual_seed(0)
    model = quantize(Attends())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = [(x.view(48, 2, 16), y) for x, y in batches(3)]
    found = lockstep(model, optimizer, step, data, runs=2)
    seen = {(row.layer, row.role, row.call) for row in found.rows}
    for name in ("scores", "context", "out_proj"):
        assert {(f"attention.{name}", role, 0) for role in ("output", "grad_input")} <= seen
    assert ("shared", "input", 1) in seen and ("shared", "grad_weight", 1) in seen
    assert ("attention.scores", "output", 1) not in seen
    missing = set(rounded_parts(model)) - {(layer, role) for layer, role, _ in seen}
    first = [f"attention.{name}_proj" for name in "qkv"]  # nobody asks for their input's gradient
    assert missing == {(name, "grad_output (grad_input)") for name in first}
    assert len(found.series("shared", "input", 1)) == 3


@pytest.fixture(scope="module")
def faulty() -> Lockstep:
    model, optimizer = case(warm=0)
    plant_(model, "3", "input", "clip", start=3)
    return lockstep(model, optimizer, step, batches(6), runs=2)


def test_the_parting_shows_the_tensors_values(faulty: Lockstep) -> None:
    assert faulty.first is not None
    values = faulty.first.values
    assert set(values) == {"reference", "before rounding", "quantized"}
    assert all(sum(counts) == 48 * 48 for counts in values.values())
    top = {
        name: max(i for i, count in enumerate(counts) if count) for name, counts in values.items()
    }
    assert top["quantized"] < top["before rounding"]  # clipped at half


def test_it_prints_saves_and_draws(faulty: Lockstep, tmp_path: Path) -> None:
    text = str(faulty)
    assert max(map(len, text.splitlines())) <= 80
    assert "first parting: step 3, layer 3, input" in text and "loss at step" in text
    content = json.loads(faulty.save(tmp_path / "f.json").read_text())
    assert content["partings"][0]["row"]["layer"] == "3"
    assert len(content["rows"]) == len(faulty.rows)
    faulty.plot(tmp_path / "f.png")
    healthy = Lockstep(
        reference="fp32", losses=faulty.losses, rounded=faulty.rounded, partings=(),
        rows=tuple(row for row in faulty.rows if row.step < 3),
    )  # fmt: skip
    assert "no tensor left its band; nearest to it" in str(healthy)
    healthy.plot(tmp_path / "h.svg")
    assert (tmp_path / "h.svg").exists() and (tmp_path / "f.png").exists()
    with pytest.raises(ValueError, match=r"ends in \.json"):
        faulty.save(tmp_path / "f.csv")


def row(step: int, leaves: str, layer: str = "a") -> LockstepRow:
    return LockstepRow(
        step=step, layer=layer, role="output", call=0, deviation=1.0, band=0.1, leaves=leaves
    )


class Told:
    """A step that says what it is told to."""

    def __init__(self, *rows: LockstepRow) -> None:
        self._rows = rows

    def rows(self, step: int) -> list[LockstepRow]:
        return list(self._rows)

    def parting(self, row: LockstepRow) -> Parting:
        return Parting(row=row, values={})


@pytest.mark.parametrize(
    ("leaves", "first"),
    [
        (["deviation", "deviation", "", "deviation"], None),
        (["", "deviation", "deviation", "deviation"], 1),
        (["", "deviation", "error", ""], 1),
        (["", "", "bias", ""], 2),
        (["", "", "", "not finite"], 3),
    ],
    ids=str,
)
def test_a_deviation_must_last_for_three_steps(leaves: list[str], first: int | None) -> None:
    found = _Found()
    for number, reason in enumerate(leaves):
        found.add(Told(row(number, reason), row(number, "", "b")))  # type: ignore[arg-type]
    assert [p.row.step for p in found.partings()] == ([] if first is None else [first])


def test_what_cannot_run_is_refused() -> None:
    model, optimizer = case(warm=0)
    data = batches(1)

    def trains_the_original(m: nn.Module, o: Any, batch: Batch) -> Tensor:
        return step(model, optimizer, batch)

    refused: list[tuple[dict[str, Any], str]] = [
        ({"model": mlp()}, "no quantized layer"),
        ({"batches": []}, "batches: got none"),
        ({"reference": "fp16"}, "reference: got 'fp16'"),
        ({"runs": 1}, "runs: got 1"),
        ({"samples": 0}, "samples: got 0"),
        ({"step": trains_the_original}, "changed the model that was given"),
        ({"step": lambda *a: None}, "step: it returned None"),
        ({"step": lambda *a: torch.ones(2)}, r"a tensor of \(2,\)"),
        ({"optimizer": torch.optim.SGD(mlp().parameters(), lr=1)}, "no parameter of the model"),
    ]
    for changes, says in refused:
        given = {"model": model, "optimizer": optimizer, "batches": data, "step": step, **changes}
        if changes.get("model"):
            given["optimizer"] = torch.optim.SGD(given["model"].parameters(), lr=0.1)
        with pytest.raises(ValueError, match=says):
            lockstep(**given)

"""accumulated: right numbers, against either reference, nothing touched."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qtrain import Forward, GradInput, GradWeight, Recipe, accumulated, inspect, models, quantize
from qtrain import recipes as named
from qtrain.inspection.probes import in_full_precision
from qtrain.inspection.report import Report
from qtrain.inspection.row import Row
from quantizers import IntFormat, Quantizer, bf16

INT4, INT8 = Quantizer(format=IntFormat(4)), Quantizer(format=IntFormat(8))
BF16 = Quantizer(format=bf16, range=None)
NEAREST = Recipe(
    name="nearest",
    forward=Forward(input=INT8, weight=INT4),
    grad_input=GradInput(grad_output=INT8),
    grad_weight=GradWeight(grad_output=BF16),
)


def at(report: Report, layer: str, role: str) -> Row:
    (row,) = (row for row in report.rows if (row.layer, row.role) == (layer, role))
    return row


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 12, generator=generator)
    return x, torch.randint(0, 5, (9,), generator=generator)


def figures(exact: Tensor, found: Tensor) -> tuple[float, float, float]:
    """(SQNR in dB, cosine, mean signed error), in fp64."""
    x, q = exact.detach().double().flatten(), found.detach().double().flatten()
    error = q - x
    return (
        10 * math.log10(float(x @ x / (error @ error))),
        float(F.cosine_similarity(x, q, 0)),
        float(error.mean()),
    )


def test_every_number_of_a_small_network_is_the_definitions() -> None:
    """Both passes by hand: the exact one by autograd, the quantized one product by product."""
    net, (x, y) = mlp(), batch()
    report = accumulated(quantize(net, recipe=NEAREST), x, y)
    (w1, b1), (w2, b2) = ((m.weight.detach(), m.bias.detach()) for m in (net[0], net[2]))

    h = F.linear(x, w1, b1).requires_grad_()
    out = F.linear(h.relu(), w2, b2).requires_grad_()
    g_out, g_h = torch.autograd.grad(F.cross_entropy(out, y), [out, h])

    def q(quantizer: Quantizer, t: Tensor) -> Tensor:
        return quantizer(t).dequantize()

    x1, v1, v2 = q(INT8, x), q(INT4, w1[None])[0], q(INT4, w2[None])[0]
    h_q = F.linear(x1, v1, b1)
    x2 = q(INT8, h_q.relu())
    out_q = F.linear(x2, v2, b2).requires_grad_()
    (g_out_q,) = torch.autograd.grad(F.cross_entropy(out_q, y), [out_q])
    g_in2_q = q(INT8, g_out_q) @ v2
    g_h_q = g_in2_q * (h_q > 0)
    found = {
        ("0", "output"): (h, h_q),
        ("2", "output"): (out, out_q),
        ("2", "grad_output"): (g_out, g_out_q),
        ("2", "grad_input"): (g_out @ w2, g_in2_q),
        ("2", "grad_weight"): (g_out.t() @ h.relu(), q(BF16, g_out_q).t() @ x2),
        ("0", "grad_output"): (g_h, g_h_q),
        ("0", "grad_weight"): (g_h.t() @ x, q(BF16, g_h_q).t() @ x1),
    }
    order = ("output", "grad_output", "grad_input", "grad_weight")
    by_layer = sorted(found, key=lambda key: (key[0], order.index(key[1])))
    assert [(row.layer, row.role) for row in report.rows] == by_layer
    for key, (exact, quantized) in found.items():
        row, (sqnr, cosine, bias) = at(report, *key), figures(exact, quantized)
        assert row.sqnr_db == pytest.approx(sqnr, abs=1e-3), key
        assert row.cosine == pytest.approx(cosine, abs=1e-6), key
        assert row.bias == pytest.approx(bias, abs=1e-7), key
        assert row.elements == exact.numel() and row.note == ""


@pytest.mark.parametrize("name", ["resnet20", "mlp"])
def test_a_model_that_is_off_but_for_one_layer_has_no_error_before_it(name: str) -> None:
    if name == "mlp":
        net, (x, y) = mlp(), batch()
        last = "2"
    else:
        net = models.get("resnet20", num_classes=4, in_channels=3, image_size=8)
        x, y = torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))
        last = "fc"
    model = quantize(net, overrides={last: named.int8(bits=4)}, recipe="fp32")
    report = accumulated(model, x, y)
    outputs = [row for row in report.rows if row.role == "output"]
    assert {row.layer for row in outputs if row.sqnr_db < math.inf} == {last}
    assert all(r.sqnr_db < 60 for r in report.rows if r.role == "grad_weight")


def test_two_full_precision_passes_are_equal_dropout_included() -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 5))
    model = quantize(net, overrides={"0": None}, bits=16)
    report = accumulated(model, *batch())
    assert at(report, "0", "output").sqnr_db == math.inf
    assert at(report, "3", "output").sqnr_db > 70  # with other masks it would be about 0


def test_the_reference_is_the_unconverted_network_bit_for_bit() -> None:
    net = models.get("resnet20", num_classes=4, in_channels=3, image_size=8)
    x, y = torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))
    exact = in_full_precision(quantize(net))
    grads = []
    for model in (net, exact):
        loss = F.cross_entropy(model(x), y)
        grads.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_norms_count_only_against_the_users_own_network() -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
    x, y = batch()
    model = quantize(net, bits=16, norm="range")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)  # the reference must take the model's weights
    own = accumulated(model, x, y)
    both = accumulated(model, x, y, reference=net)
    assert at(own, "0", "output").sqnr_db == at(both, "0", "output").sqnr_db > 70
    assert at(own, "3", "output").sqnr_db > 60 > 40 > at(both, "3", "output").sqnr_db


def test_errors_pile_up_where_inspect_says_that_none_is_added() -> None:
    """A coarse first layer, the others at 16 bits: its error is in all that follow."""
    torch.manual_seed(0)
    net = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(16, 16), nn.ReLU())))
    model = quantize(net, bits=16, overrides={"0": 2})
    x = torch.randn(32, 16)
    local, piled = (
        f(model, x, loss=lambda out: out.square().sum()) for f in (inspect, accumulated)
    )
    for layer in ("2", "4", "6"):
        assert at(local, layer, "output").sqnr_db > 80
        assert at(piled, layer, "output").sqnr_db < 20


def test_products_within_attention_and_layers_left_have_rows() -> None:
    torch.manual_seed(0)
    net = models.get("chartransformer", num_classes=11, context=8)
    model = quantize(net, overrides={"fc": None})
    tokens = torch.randint(0, 11, (2, 8))
    report = accumulated(model, tokens, tokens, samples=None)
    layers = {row.layer for row in report.rows}
    assert any(name.endswith("scores") for name in layers) and "fc" in layers
    for row in report.rows:
        assert 0 < row.sqnr_db < 80, row


class Twice(nn.Module):
    def __init__(self, *, checkpointed: bool) -> None:
        super().__init__()
        self.layer, self.checkpointed = nn.Linear(6, 6), checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            if self.checkpointed:
                x = checkpoint(self.layer, x, use_reentrant=False).tanh()
            else:
                x = self.layer(x).tanh()
        return x


def test_both_calls_of_a_shared_layer_count_and_a_repeated_forward_counts_once() -> None:
    torch.manual_seed(0)
    net, x = Twice(checkpointed=False), torch.randn(8, 6)
    reports = []
    for checkpointed in (False, True):
        net.checkpointed = checkpointed
        reports.append(accumulated(quantize(net), x, loss=lambda out: out.square().sum()))
    assert reports[0] == reports[1]
    assert at(reports[0], "layer", "output").elements == 2 * 48


@pytest.mark.parametrize("training", [True, False])
def test_model_reference_and_random_state_are_left_as_they_were(training: bool) -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 5))
    model = quantize(net, norm="l1").train(training)
    x, y = batch()
    before = copy.deepcopy((model.state_dict(), net.state_dict()))
    state = torch.get_rng_state()
    accumulated(model, x, y, reference=net)
    after = model.state_dict(), net.state_dict()
    for a, b in zip(before, after, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in [*model.parameters(), *net.parameters()])
    assert all(getattr(m, "probe", None) is None for m in model.modules())
    assert net.training and model.training == training


def test_without_a_loss_there_are_outputs_alone() -> None:
    report = accumulated(quantize(mlp()), batch()[0])
    assert {row.role for row in report.rows} == {"output"}


def test_samples_look_at_so_many_elements_of_each_tensor() -> None:
    x, y = batch()
    report = accumulated(quantize(mlp()), x, y, samples=20)
    assert all(row.elements == 20 for row in report.rows)


def test_tensors_of_other_shapes_are_not_compared_and_the_row_says_so() -> None:
    plain, half = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    half.register_forward_pre_hook(lambda module, args: (args[0][::2],))
    (row,) = accumulated(quantize(plain), torch.randn(8, 4), reference=half).rows
    assert row.elements == 0 and "ran this layer otherwise" in row.note


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"reference": "quantized"}, "reference: it is quantized"),
        ({"reference": "other"}, "does not take the model's state"),
        ({"targets": torch.zeros(9)}, "cross-entropy of integer class targets"),
        ({"samples": 0}, "samples: got 0"),
        ({"loss": lambda out, y: out}, "loss must be one number"),
        ({"model": mlp()}, "no quantized layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(arguments: dict[str, Any], says: str) -> None:
    model, (x, y) = quantize(mlp()), batch()
    kinds = {"quantized": model, "other": nn.Linear(3, 3)}
    given = {"model": model, "inputs": x, "targets": y, **arguments}
    given["reference"] = kinds.get(given.get("reference"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=says):
        accumulated(**given)

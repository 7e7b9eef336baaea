"""Two processes train a network whose products are functions: data-parallel, and sharded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_cases import on_two_ranks

TRAINED = """
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_model_state_dict, set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from qtrain import quantize

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + torch.einsum("bqk,bkd->bqd", (q @ k.mT / 3).softmax(-1), v) @ self.out
        return x + F.scaled_dot_product_attention(q, k, v)

class Net(nn.Module):
    def __init__(self, checkpointed=False, products=True):
        super().__init__()
        self.blocks = nn.ModuleList(Attention() for _ in range(2)) if products else []
        self.head = nn.Parameter(torch.randn(4, 8) / 3)
        self.checkpointed = checkpointed

    def forward(self, x):
        for block in self.blocks:
            if self.checkpointed:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return F.linear(x, self.head)

def net(**settings):
    torch.manual_seed(0)
    return Net(**settings)

def inputs(step):
    draw = torch.Generator().manual_seed(2 * step + rank)
    return torch.randn(3, 5, 8, generator=draw)

def trained(model, steps, first=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = model(inputs(step)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    grads = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters()]
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {"losses": losses, "grads": grads, "state": {k: v.clone() for k, v in state.items()}}

def sharded(checkpointed=False):
    with torch.device("meta"):
        model = quantize(net(checkpointed=checkpointed), seed=3)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, net().state_dict(), options=options)
    return model

lazy = DistributedDataParallel(quantize(net(), seed=3))
found = {"lazy": trained(lazy, 3)}
found["early"] = trained(DistributedDataParallel(
    quantize(net(), seed=3, example_inputs=inputs(0))), 3)
found["checkpointed"] = trained(DistributedDataParallel(
    quantize(net(checkpointed=True), seed=3)), 3)
found["sharded"] = trained(sharded(), 3)
found["sharded, checkpointed"] = trained(sharded(checkpointed=True), 3)

if rank == 0:
    torch.save(lazy.module.state_dict(), f"{folder}/state.pt")
torch.distributed.barrier()
again = quantize(net(), seed=7)
again.load_state_dict(torch.load(f"{folder}/state.pt"))
found["again"] = trained(DistributedDataParallel(again), 2, first=3)
found["on"] = trained(lazy, 2, first=3)

lazy(inputs(9))  # which hands on rank 0's buffers before it runs
lazy.module.eval()
lazy(inputs(9))
found["evaluated"] = {"state": {name: b.clone() for name, b in lazy.named_buffers()}}
"""
REFUSED = """
def error(make):
    try:
        make()(inputs(0)).sum().backward()
    except ValueError as error:
        return str(error)
found["errors"] = {
    "buffers": error(lambda: DistributedDataParallel(quantize(net(products=False)))),
    "broadcast off": error(lambda: DistributedDataParallel(
        quantize(net(products=False)), broadcast_buffers=False)),
    "found early": error(lambda: DistributedDataParallel(
        quantize(net(products=False), example_inputs=inputs(0)))),
    "no ranges": error(lambda: DistributedDataParallel(
        quantize(net(products=False), recipe="bf16"))),
    "learned": error(lambda: DistributedDataParallel(quantize(net(), recipe="lsq"))),
}
learned = quantize(net(), recipe="lsq", example_inputs=inputs(0))
found["learned"] = trained(DistributedDataParallel(learned), 2)
torch.save(found, f"{folder}/{rank}.pt")
"""

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """What both found, in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(TRAINED + REFUSED, folder)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return first, second


def without_ranges(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights, and noise: the running ranges are of a rank's own batches."""
    return {k: v for k, v in state.items() if not k.endswith(("_low", "_high"))}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_ranks_have_the_same_gradients_and_weights(ranks: tuple[Found, Found]) -> None:
    names = [name for name in ranks[0] if "losses" in ranks[0][name]]
    assert len(names) == 8
    for name in names:
        first, second = (own[name] for own in ranks)
        assert first["losses"] != second["losses"]
        assert all(torch.tensor(first["losses"]).isfinite())
        assert all(map(torch.equal, first["grads"], second["grads"])), name
        assert_equal(without_ranges(first["state"]), without_ranges(second["state"]))


@pytest.mark.cases(4, 1)
@pytest.mark.parametrize("name", ["early", "checkpointed", "sharded", "sharded, checkpointed"])
def test_however_they_are_wrapped_they_train_alike(ranks: tuple[Found, Found], name: str) -> None:
    for own in ranks:
        assert own["lazy"]["losses"] == own[name]["losses"]
        assert all(map(torch.equal, own["lazy"]["grads"], own[name]["grads"]))
        assert_equal(without_ranges(own["lazy"]["state"]), without_ranges(own[name]["state"]))
        if "sharded" not in name:  # where buffers are not handed on
            assert_equal(own["lazy"]["state"], own[name]["state"])


def test_the_first_ranks_state_goes_on_bit_for_bit(ranks: tuple[Found, Found]) -> None:
    for own in ranks:
        assert own["on"]["losses"] == own["again"]["losses"]
        assert all(map(torch.equal, own["on"]["grads"], own["again"]["grads"]))
    assert_equal(ranks[0]["on"]["state"], ranks[0]["again"]["state"])
    assert "blocks.0.functional.matmul0.product.forward_input_low" in ranks[0]["on"]["state"]


def test_buffers_of_calls_are_handed_on(ranks: tuple[Found, Found]) -> None:
    first, second = (own["evaluated"]["state"] for own in ranks)
    assert any(".functional." in name and name.endswith("_low") for name in first)
    assert_equal(first, second)


def test_what_ddp_cannot_hand_on_is_refused(ranks: tuple[Found, Found]) -> None:
    errors = ranks[0]["errors"]
    assert errors == ranks[1]["errors"]
    assert "layer 'functional.linear0'" in errors["buffers"]
    assert "example_inputs" in errors["buffers"] and "DistributedData" in errors["buffers"]
    assert [errors[name] for name in ("broadcast off", "found early", "no ranges")] == [None] * 3
    assert "functional.matmul0" in errors["learned"] and "example_inputs" in errors["learned"]

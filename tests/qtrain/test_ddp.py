"""Two data-parallel processes on this machine train the quantized model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import on_two_ranks

from qtrain import read_monitor

TRAINED = """
from torch.nn.parallel import DistributedDataParallel
from qtrain import data, models, quantize
digits = data.load("digits")
torch.manual_seed(rank)  # DDP itself sends rank 0's weights to all
network = models.get("resnet20", num_classes=10, in_channels=1, image_size=8)
model = DistributedDataParallel(quantize(network, recipe="int8", norm="range", seed=3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
batches = data.Batches(split=digits.train, batch_size=16, seed=0, rank=rank, world_size=2)
losses = []
for step, (inputs, targets) in zip(range(4), batches):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
state = dict(model.module.named_parameters())
torch.save({"losses": losses, "weights": {k: v.detach() for k, v in state.items()}},
           f"{folder}/trained{rank}.pt")
"""


def test_two_ranks_end_with_the_same_bits_from_different_batches(ranks: Path) -> None:
    first, second = (torch.load(ranks / f"trained{rank}.pt") for rank in range(2))
    assert first["losses"] != second["losses"]
    assert all(torch.tensor(first["losses"]).isfinite())
    assert first["weights"].keys() == second["weights"].keys()
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
        assert not isinstance(weight, nn.Parameter)


MONITORED = """
from qtrain import Monitor

def trained(monitored):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(128, 10),
    )
    model = DistributedDataParallel(quantize(network, bits=8, seed=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = Monitor(model, every=1) if monitored else None
    batches = data.Batches(split=digits.train, batch_size=16, seed=0, rank=rank, world_size=2)
    for step, (inputs, targets) in zip(range(4), batches):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    if monitor is not None:
        monitor.close()
    return model.module.state_dict(), monitor

plain, _ = trained(False)
watched, monitor = trained(True)
monitor.save(f"{folder}/rank{rank}.jsonl")
same = all(torch.equal(plain[name], watched[name]) for name in plain)
torch.save(same, f"{folder}/same{rank}.pt")
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both leave, trained in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(TRAINED + MONITORED, folder)
    return folder


def test_each_rank_monitors_its_own_tensors_and_training_stays_the_same(ranks: Path) -> None:
    assert [torch.load(ranks / f"same{rank}.pt") for rank in range(2)] == [True, True]
    records = [read_monitor(ranks / f"rank{rank}.jsonl") for rank in range(2)]
    for first, second in zip(*records, strict=True):
        key = first.step, first.layer, first.role
        assert key == (second.step, second.layer, second.role)
        # the weights are one, the data is not
        same = first.role == "weight"
        assert ((first.sqnr_db, first.values) == (second.sqnr_db, second.values)) == same, key
        if same:
            assert first.update == second.update and first.update is not None
    assert {row.step for row in records[0]} == {0, 1, 2, 3}

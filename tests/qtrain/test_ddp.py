"""Two data-parallel processes on this machine train the quantized model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from training_cases import start

RANK = """
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from qtrain import data, models, quantize

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
)
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
           f"{folder}/rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_ranks_end_with_the_same_bits_from_different_batches(tmp_path: Path) -> None:
    processes = [start(RANK, str(rank), str(tmp_path)) for rank in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first["losses"] != second["losses"]
    assert all(torch.tensor(first["losses"]).isfinite())
    assert first["weights"].keys() == second["weights"].keys()
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
        assert not isinstance(weight, nn.Parameter)

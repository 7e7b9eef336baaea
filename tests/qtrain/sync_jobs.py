"""The jobs that run on every rank of the tests of synchronised norms: (rank, world) -> results."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.distributed as dist
from sync_cases import CHANNELS, PAIR, Case, Results, cases, norm_for, quantized_cases, results
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qtrain import quantize
from qtrain.conversion.watch import forget_watch
from qtrain.norms.deviations import l1, linf, range_
from qtrain.norms.recipe import NormRecipe

DOUBLE = torch.float64


def norms(rank: int, world: int) -> dict[str, Results]:
    """Every case; of three ranks, also a group of two."""
    every = {**cases(world), **quantized_cases(world)}
    found = {
        name: results(norm_for(nn.SyncBatchNorm, case.recipe, case.dtype), *case.of(rank))
        for name, case in every.items()
    }
    return found if world < 3 else {**found, "pair": _pair(rank)}


def _pair(rank: int) -> Results:
    """Ranks 0 and 2 as one, in a model that was copied with its group."""
    pair, rest = dist.new_group([0, 2]), dist.new_group([1])
    norm = nn.SyncBatchNorm(CHANNELS, process_group=rest if rank == 1 else pair).double()
    model = quantize(nn.Sequential(norm), recipe="fp32", norm="linf")
    return results(model[0], *PAIR.of(rank))


class TwiceSyncBatchNorm(nn.SyncBatchNorm):
    """Twice the norm."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def subclass(rank: int, world: int) -> tuple[Results, Results]:
    """One step of torch's norm, and of a subclass of it with the gradient halved."""
    case = Case(NormRecipe(deviation=range_()), (2, 3), (3, 2), DOUBLE)
    x, grad = case.of(rank)
    own = results(norm_for(TwiceSyncBatchNorm, case.recipe, case.dtype), x, grad / 2)
    return results(norm_for(nn.SyncBatchNorm, case.recipe, case.dtype), x, grad), own


def network(kind: Any) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), kind(6), nn.ReLU(), nn.Conv2d(6, CHANNELS, 3), kind(CHANNELS),
        nn.ReLU(), nn.Flatten(), nn.Linear(CHANNELS * 16, 4),
    ).double()  # fmt: skip


def digits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 3, 8, 8, generator=generator, dtype=DOUBLE)
    return x, torch.randint(0, 4, (12,), generator=generator)


def trained(model: nn.Module, rank: int, world: int) -> Results:
    """Three steps on the rank's share of one batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    device = next(model.parameters()).device
    inputs, targets = (t.chunk(world)[rank].to(device) for t in digits())
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def devices(rank: int, world: int) -> dict[str, Results]:
    """DDP and synchronised norms on the CPU and on a GPU that the ranks share."""
    found = {}
    for device in ("cpu", "cuda"):
        model = DistributedDataParallel(converted(nn.SyncBatchNorm).to(device))
        found[device] = {name: t.cpu() for name, t in trained(model, rank, world).items()}
    return found


def converted(kind: Any, norm: Any = "range", recipe: str = "fp32") -> nn.Module:
    model = quantize(network(kind), recipe=recipe, norm=norm)
    forget_watch(model)
    return model


def _alone(rank: int) -> list[tuple[Results, Results]]:
    """Pairs of one norm that has no rank to wait for and one that is not synchronised."""
    own = [dist.new_group([r]) for r in range(dist.get_world_size())][rank]
    case = Case(NormRecipe(deviation=linf()), (4 + rank,), (3, 2), DOUBLE)
    pairs = []
    norm = norm_for(nn.SyncBatchNorm, case.recipe, DOUBLE, process_group=own)
    plain = norm_for(nn.BatchNorm2d, case.recipe, DOUBLE)
    for _ in ("training", "evaluation"):
        norm.zero_grad(), plain.zero_grad()
        pairs.append((results(norm, *case.whole), results(plain, *case.whole)))
        norm.eval(), plain.eval()
        norm.process_group = None
    empty = torch.zeros(0, CHANNELS, 3, 2, dtype=DOUBLE)
    pairs.append((results(norm, empty, empty), results(plain, empty, empty)))
    return pairs


def _refused(rank: int) -> str:
    """The error of one element a channel in all."""
    norm = norm_for(nn.SyncBatchNorm, NormRecipe(deviation=l1()), DOUBLE)
    try:
        norm(torch.zeros(1 - rank, CHANNELS, dtype=DOUBLE))
    except ValueError as error:
        return str(error)
    return "nothing"


def _nothing(rank: int) -> Results:
    """A batch that is empty on every rank."""
    norm = norm_for(nn.SyncBatchNorm, NormRecipe(deviation=l1()), DOUBLE)
    empty = torch.zeros(0, CHANNELS, 3, 2, dtype=DOUBLE)
    return results(norm, empty, empty)


def _fused(rank: int) -> list[Tensor]:
    """A quantized model as it runs, and its modules one after the other."""
    model = converted(nn.SyncBatchNorm, recipe="int8").float()
    twin = copy.deepcopy(model)
    x = y = digits()[0].float()[6 * rank : 6 * rank + 6]
    for module in twin:
        y = module(y)
    return [model(x).detach(), y.detach()]


def _compiled(rank: int) -> list[Results]:
    """A norm as it is, and under torch.compile."""
    case = Case(NormRecipe(deviation=range_(3)), (3, 5), (3, 2), torch.float32)
    norm = norm_for(nn.SyncBatchNorm, case.recipe, case.dtype)
    twin = copy.deepcopy(norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = torch.compile(twin, backend="aot_eager")
        return [results(norm, *case.of(rank)), results(run, *case.of(rank))]


def models(rank: int, world: int) -> dict[str, Any]:
    """What a job of two ranks finds out about models and about norms on their own."""
    ddp = DistributedDataParallel(converted(nn.SyncBatchNorm))
    return {
        "ddp": trained(ddp, rank, world),
        "alone": _alone(rank),
        "refused": _refused(rank),
        "nothing": _nothing(rank),
        "fused": _fused(rank),
        "compiled": _compiled(rank),
    }


def every(rank: int, world: int) -> dict[str, Any]:
    """The jobs of two ranks, in one pair of processes."""
    return {job.__name__: job(rank, world) for job in (norms, models, subclass)}

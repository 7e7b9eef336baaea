"""What the tests of synchronised norms run on every rank, and on one process alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from training_cases import Forked, start

from qtrain.conversion.kinds import convert_norm_
from qtrain.norms.deviations import l1, l2, linf, none, range_, topk
from qtrain.norms.module import QNorm
from qtrain.norms.recipe import NormRecipe, StatisticsGradient
from quantizers import Quantizer, fp16, int8

DEVIATIONS = [
    l2(), l2(times=4), l1(), l1(times=0.25), linf(), linf("code"), topk(3), topk(40), range_(),
    range_(1, "paper"), range_(2), range_(3), range_(16), none(), topk(3, "code", smoothing=0.5),
]  # fmt: skip
#: by the number of ranks, the samples of each; one is empty
BATCHES = {2: [(4, 4), (3, 5), (0, 3)], 3: [(2, 2, 2), (4, 1, 2), (3, 0, 2)]}
CHANNELS = 3

Results = dict[str, Tensor]


class Case(NamedTuple):
    """A norm under a recipe, and the batches of all ranks."""

    recipe: NormRecipe
    batches: tuple[int, ...]
    space: tuple[int, ...]
    dtype: torch.dtype
    rounded: bool = False

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """x and grad_output, all ranks' in rank order; rounded: of x, many are largest."""
        generator = torch.Generator().manual_seed(len(self.batches) + len(self.space))
        shape = (sum(self.batches), *self.space, CHANNELS)
        x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        x = x.round().clamp(-1, 2) if self.rounded else x
        x = x * torch.tensor([1.0, 3.0, 0.1]) + torch.tensor([0.0, 2.0, -1.0])
        # fp32 channels-last, as the compiled passes take it, fp64 contiguous
        ours = [t.movedim(-1, 1).to(self.dtype) for t in (x, grad)]
        return tuple(t.contiguous() if t.dtype == torch.float64 else t for t in ours)  # type: ignore[return-value]

    def of(self, rank: int) -> tuple[Tensor, Tensor]:
        """The rank's own."""
        x, grad = (t.split(self.batches)[rank] for t in self.whole)
        return x, grad


def cases(world: int) -> dict[str, Case]:
    found: dict[str, Case] = {}

    def add(case: Case) -> None:
        found[f"{case} {len(found)}"] = case

    carries: list[StatisticsGradient] = ["exact", "l2", "detached"]
    for batches, deviation, carry in itertools.product(BATCHES[world], DEVIATIONS, carries):
        if (deviation, carry) == (none(), "l2"):
            continue
        recipe = NormRecipe(deviation=deviation, statistics_gradient=carry)
        uneven = batches == BATCHES[world][1]
        if carry == "exact" or uneven:
            add(Case(recipe, batches, (3, 2), torch.float64))
        if carry == "exact" and not uneven:
            add(Case(recipe, batches, (3, 5), torch.float32))
    add(Case(NormRecipe(deviation=range_(2)), (1,) * world, (), torch.float64))
    for deviation in (linf(), range_(), range_(3)):
        for dtype in (torch.float64, torch.float32):
            recipe = NormRecipe(deviation=deviation)
            add(Case(recipe, BATCHES[world][1], (3, 2), dtype, rounded=True))
    return found


#: of three ranks, of which 0 and 2 are a group
PAIR = Case(NormRecipe(deviation=linf()), (3, 2, 4), (3, 2), torch.float64)


def quantized_cases(world: int) -> dict[str, Case]:
    """Norms whose operands are quantized, and whose output is rounded."""
    q = Quantizer(format=int8)
    found = {}
    for deviation, batches in itertools.product((l2(), linf(), range_(2)), BATCHES[world]):
        recipe = NormRecipe(
            deviation=deviation, input=q, weight=q, bias=q, grad_output=q, activation=fp16
        )
        found[f"{deviation} {batches}"] = Case(recipe, batches, (3, 2), torch.float64)
    return found


def norm_for(kind: Any, recipe: NormRecipe, dtype: torch.dtype, **settings: Any) -> Any:
    """A converted norm with scales of both signs and shifts away from 0."""
    norm = kind(CHANNELS, **settings).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -0.5, 2.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    convert_norm_(norm, recipe)
    return norm


def results(norm: Any, x: Tensor, grad: Tensor) -> Results:
    """Output, gradients and running statistics of one step."""
    x = x.detach().requires_grad_()
    output = norm(x)
    output.backward(grad)
    found = {"output": output, "grad_input": x.grad, "grad_weight": norm.weight.grad}
    found |= {"grad_bias": norm.bias.grad, "mean": norm.running_mean, "var": norm.running_var}
    found |= {"steps": norm.num_batches_tracked}
    if isinstance(norm, QNorm):
        kept = norm.state.named_buffers()
        found |= {name: memory for name, memory in kept if name.startswith("norm_deviation_")}
    return {name: t.detach().clone() for name, t in found.items() if t is not None}


def run_ranks(job: str, world: int, folder: Path) -> list[Any]:
    """What the job of this name in sync_jobs returns on each of `world` processes."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import sync_cases; "
        "sync_cases.run_rank(*sys.argv[2:])"
    )
    here = str(Path(__file__).parent)
    create = start if job == "devices" else Forked
    processes = [create(code, here, job, str(r), str(world), str(folder)) for r in range(world)]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
    finally:  # the others wait for one that failed
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def run_rank(job: str, rank: str, world: str, folder: str) -> None:
    import sync_jobs

    torch.set_num_threads(1)
    init = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=init, rank=int(rank), world_size=int(world))
    torch.save(getattr(sync_jobs, job)(int(rank), int(world)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()

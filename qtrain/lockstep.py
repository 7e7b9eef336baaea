"""lockstep: a quantized run beside full precision, and where the first of its tensors parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from . import checks
from .aside import random_state, random_state_kept, unwrapped
from .capture import FULL, show, watchable
from .converted import reseed
from .layers import products_of
from .lockstep_rows import Lockstep, LockstepRow, Parting
from .lockstep_step import Event, Step, recipes_of
from .recipes import bf16
from .replicas import replica
from .step_function import StepFunction, Watch, loss_of
from .switches import rounded_parts
from .unbiased import make_unbiased_

#: In how many steps in a row a deviation must be, to count.
LASTS = 3


def lockstep(
    model: nn.Module,
    optimizer: Optimizer,
    step: StepFunction,
    batches: Iterable[Any],
    *,
    reference: str = "fp32",
    runs: int = 4,
    samples: int = 2**12,
    seed: int = 0,
) -> Lockstep:
    """Train a quantized model, its reference and repeated runs side by side, from one state, and
    find the first step, layer and role at which the quantized one leaves its band.

    model, optimizer   in the state to start from, as a checkpoint holds it; both are left as they
                       are, every run has copies
    step               step(model, optimizer, batch) -> loss: zeroes gradients, runs forward and
                       backward, updates.  It is called runs + 2 times a batch, with the same random
                       state, and must use nothing that changes but its arguments: a learning rate
                       that moves comes with the batch
    batches            one a step, the same object for every run
    reference          "fp32": every product in full precision; "bf16": what is quantized, in bf16
    runs               repeated runs, that make the band
    samples            elements of each tensor that are looked at, evenly spread
    seed               of the repeated runs' rounding

    The quantized run is the model's own, bit for bit.  A repeated run has its formats and granules,
    but quantizers that are healthy: over the whole range of the tensor at hand, and unbiased, with
    other rounding noise in each run.  What is rounded stochastically is so in them, too; what is
    rounded to the nearest gets random thresholds that stay from step to step.  So the band has also
    the spread that rounding to the nearest would hide, piled up over layers and steps.

    An operand leaves its band in the step in which its own error, against the tensor as it arrives,
    is more than 3 times that of unbiased rounding in its own format ("error"), or has a mean part
    that neither unbiased nor nearest rounding explains ("bias"): `own_error` has the definition,
    and how rarely chance does it (less than once in a million tensors).
    This measure does not see what came before, so it names the layer and role at fault.

    Any tensor leaves its band ("deviation") where its distance from the reference's is more than 3
    times the root-mean-square distance of the repeated runs, in that step and in the two that
    follow; or where it is not finite, but the reference's is ("not finite").  Systematic and random
    parts count alike: the band holds as much noise as the run, and over the elements of a tensor
    noise averages out.  One step alone may be far off in a healthy run, where a rare sample or a
    ReLU on its edge turns: of 73,000 tensors of 130 healthy runs (int8, int4, int3, bf16, fp16;
    MLP, CNN, ResNet, Transformer; 12 to 150 steps) the farthest was 65 times as far as the band in
    one step, but 1.7 times in three in a row.  A deviation of the last two steps is open.

    Compared are `sampled` elements of the operands that are rounded, as they were multiplied, and
    of every product's result.  What is no product (norms, activations) is the same in all runs, and
    shows in what it hands on; see `watchable` for products that are not seen.  A recipe that clips
    by design (banner2018) leaves the band from the start.  In memory are samples of every tensor of
    one step, and the copies.

    Which of the parts that left are to blame, `bisect` finds: they are its candidates, and the
    steps up to the parting, or on to where the losses part, its window:

        found = lockstep(model, optimizer, step, batches)
        until = batches[: found.first.row.step + 1]
        bisect(model, replay(model, optimizer, step, until, diverged=...), parts=found.parts)

    Raises ValueError for a model without a quantized layer, an optimizer that cannot be copied, a
    step that changes what lockstep was given or returns no number, and without a batch.
    """
    model = unwrapped(model)
    if all(product.recipe.products_off for product in products_of(model)):
        raise ValueError("lockstep: the model has no quantized layer; quantize(model) first")
    checks.choice("reference", reference, ("fp32", "bf16"))
    checks.optimizer(optimizer)
    checks.function("step", step, "a function of (model, optimizer, batch)", None, None, None)
    batches = checks.iterable("batches", batches, "batches, a list of one a step")
    checks.integer("runs", runs, low=2, high=1000, hint="4 make a band")
    checks.integer("samples", samples, low=1)
    checks.seed(seed)
    kinds: dict[str, Callable[[nn.Module], nn.Module]] = {
        "reference": partial(_referred, kind=reference),
        "quantized": watchable,
        **{f"band {i + 1}": partial(_repeated, seed=seed * runs + i) for i in range(runs)},
    }
    with random_state_kept():
        trained = {name: replica(model, optimizer, make) for name, make in kinds.items()}
        recipes = recipes_of(trained["quantized"][0])
        found = _Found()
        losses: dict[str, list[float]] = {name: [] for name in kinds}
        for batch in batches:
            now = Step(recipes, samples)
            restore = random_state()
            watch = Watch(model, optimizer, batch)
            for name, (twin, own) in trained.items():
                restore()
                if name == "quantized":
                    show(twin, now.see_quantized, now.see_operand)
                else:
                    show(twin, now.see_reference if name == "reference" else now.see_repeated)
                losses[name].append(loss_of(step(twin, own, batch)))
                watch.check()
            found.add(now)
    if not losses["reference"]:
        raise ValueError("batches: got none; pass at least one")
    return Lockstep(
        reference=reference,
        losses={name: tuple(own) for name, own in losses.items()},
        rows=tuple(found.rows),
        partings=found.partings(),
        rounded=rounded_parts(model),
    )


def _referred(model: nn.Module, *, kind: str) -> nn.Module:
    twin = watchable(model)
    for product in products_of(twin):
        product.recipe = FULL if kind == "fp32" or product.recipe is FULL else bf16()
    return twin


def _repeated(model: nn.Module, *, seed: int) -> nn.Module:
    twin = reseed(watchable(model), 2**32 + seed)  # not the model's own seed
    make_unbiased_(twin, seed)
    return twin


class _Found:
    """Rows and partings of the steps so far; of the last ones, deviations that may not last."""

    def __init__(self) -> None:
        self.rows: list[LockstepRow] = []
        self._first: dict[Event, tuple[int, int, Parting]] = {}
        self._open: dict[Event, tuple[int, int, Parting]] = {}
        self._steps = 0

    def add(self, step: Step) -> None:
        still: dict[Event, tuple[int, int, Parting]] = {}
        for place, row in enumerate(step.rows(self._steps)):
            self.rows.append(row)
            event = row.layer, row.role, row.call
            if not row.leaves or event in self._first:
                continue
            here = self._open.get(event) or (self._steps, place, step.parting(row))
            if row.leaves != "deviation" or self._steps - here[0] + 1 >= LASTS:
                self._first[event] = here
            else:
                still[event] = here
        self._open = still
        self._steps += 1

    def partings(self) -> tuple[Parting, ...]:
        ordered = sorted(self._first.values(), key=lambda one: one[:2])
        return tuple(parting for _, _, parting in ordered)

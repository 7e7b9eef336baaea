"""Monitor: the numeric error of every layer, role and product, recorded while a model trains."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .. import checks
from ..copies import unwrapped
from ..names import some
from ..products.watched import Watched, watched_of
from ..reports.heat import plot_heats
from .attached import Attached, refuse_compiled
from .distributions import HIGHEST, LOWEST
from .record import Record
from .recorder import Recorder
from .report import Report
from .rows import MonitorRow, save_rows
from .step_ends import StepEnds, listen

if TYPE_CHECKING:
    from ..reports.plots import Axes, Figure, Place


class Monitor:
    """Records every `every`-th training step of a model, the first (step 0) included:
    `monitor = Monitor(model, every=100)`, then train as ever.

    every     steps from one record to the next
    layers    how many layers a record measures: they take turns in the order of the network, each
              in every ceil(quantized layers / layers)-th record; None: all in each
    samples   how many elements of each tensor are looked at: evenly spread, the same places each
              time.  Scales are all looked at.  Products are computed whole for comparison: on the
              CPU in fp32 (fp64 for fp64 data; an SQNR above some 120 dB is its own rounding),
              elsewhere in fp64
    keep      how many records are kept: when there are more, every second one of the older half is
              dropped (of each turn's, so that layers lose alike); `thinned` counts them

    A training step ends when a torch optimizer that holds parameters of the model has stepped: all
    forwards and backwards before make one step (gradient accumulation).  Optimizers that take turns
    end a step together; an update that a GradScaler skips, or within a backward pass, ends none.
    A loop without such an optimizer calls `end_step()`.  Only training forwards are recorded, each
    once: not those that activation checkpointing repeats.

    Of data-parallel processes each records its own tensors: the weights' rows are the same on all
    ranks, the others are of the rank's share of the batch; a rank may go without.

    The training stays the same, bit for bit.  A step that is not recorded has no probe on any layer
    and waits for no device; a recorded one waits, and keeps the inputs of the layers it measures
    until their backward pass.  A row takes one or two milliseconds of a CPU core, and a product's
    as much again as the product (three times, where an accumulator sums it): at every=100 under 1 %
    of a ResNet's run, more of one whose steps are that short.  A copy of the model is not
    monitored.  `diagnose(monitor)` judges the record.

    Raises ValueError for a model without a quantized layer, one that is compiled (a measured step
    would run uncompiled, with other last bits) or monitored already, and for `keep` too small.  A
    monitored step cannot be captured in a CUDA graph (ValueError); replays of an earlier capture
    are not seen, of which a warning tells where a record is due.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 100,
        *,
        layers: int | None = 8,
        samples: int = 2**14,
        keep: int = 200,
    ) -> None:
        self._model = unwrapped(model)
        refuse_compiled(model)
        self._products: dict[str, list[Watched]] = {}
        self._channels: dict[str, int] = {}  # the axis of each layer's input's channels
        for layer in self._model.modules():
            for module in layer.children():
                if isinstance(module, Watched) and not module.is_off:
                    name = module.name
                    self._products.setdefault(name, []).append(module)
                    self._channels[name] = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
        if not self._products:
            checks.no_quantized_layer("Monitor")
        count = len(self._products)
        self.every = checks.integer("every", every, low=1)
        self.samples = checks.integer("samples", samples, low=1)
        self.layers = count
        if layers is not None:
            hint = "None measures all in every record"
            self.layers = min(checks.integer("layers", layers, low=1, hint=hint), count)
        self._turns = -(-count // self.layers)
        hint = f"4 for each of the {self._turns} turns in which {count} layers are measured"
        self.keep = checks.integer("keep", keep, low=4 * self._turns, hint=hint)
        self._record = Record(every=self.every, turns=self._turns, keep=self.keep)
        self._step = 0
        self._attached = Attached(self._products)
        self._ends = StepEnds(self._model)
        # whoever forgets a monitor is rid of it
        self._off = weakref.finalize(self, _clear, listen(self.stepped), self._attached)
        self._attach()

    @property
    def step(self) -> int:
        """Training steps that have ended."""
        return self._step

    @property
    def thinned(self) -> int:
        """Records that were dropped to keep no more than `keep`."""
        return self._record.thinned

    @property
    def rows(self) -> tuple[MonitorRow, ...]:
        """Every record that is kept, once its step has ended, in the order of steps; in a step by
        layer, in the order of the network, and role."""
        return tuple(self._record.rows)

    def report(self, step: int | None = None) -> Report:
        """The record of a step (None: the last one); ValueError where there is none."""
        steps = self._record.steps
        if not steps:
            raise ValueError(
                f"report: nothing is recorded; {self._step} training steps have ended. Layers in "
                "evaluation mode are not recorded; a loop without a torch optimizer of the model's "
                "parameters must call end_step()"
            )
        chosen = steps[-1] if step is None else checks.integer("step", step, low=0)
        if chosen not in steps:
            near = sorted(steps, key=lambda s: abs(s - chosen))[:3]
            raise ValueError(
                f"report: step {checks.shown(chosen)} is not recorded (every={self.every}, "
                f"{self.thinned} thinned out); the nearest that are: "
                f"{', '.join(map(str, sorted(near)))}"
            )
        rows = tuple(row.error() for row in self._record.rows if row.step == chosen)
        shown, count = len({row.layer for row in rows}), len(self._products)
        turns = f"{shown} of {count} layers; the others take turns (layers=None: all at once)"
        return Report(rows, remark=turns if shown < count else "")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a .jsonl file, atomically: a line that says what was recorded, then one a row."""
        path = checks.path("save", path)
        header = {
            "kind": "monitor", **self._settings(), "step": self._step, "thinned": self.thinned,
            "binades": [LOWEST, HIGHEST],
        }  # fmt: skip
        save_rows(path, header, self._record.rows)
        return path

    def plot(
        self,
        path: Place = None,
        *,
        ax: Axes | None = None,
        layers: Iterable[str] | None = None,
        roles: Iterable[str] | None = None,
    ) -> Figure:
        """SQNR by step as heat maps, one a role, a line a layer in network order; to a PNG or SVG
        where a path is given; that of one role into `ax` where one is.

        layers, roles   which of those recorded; None: all.  ValueError for others, and without a
                        row
        """
        for field, names in (("layers", layers), ("roles", roles)):
            if names is not None and not isinstance(names, str):  # which is no layer's, or role's
                checks.patterns(field, names)
        return plot_heats(self._record.heats(layers, roles), path, ax=ax)

    def end_step(self) -> None:
        """End a training step, where no torch optimizer does."""
        if self._attached.open:
            self._attached.warn_of_unseen()
            self._record.add(self._step, self._attached.open)
        self._attached.take()
        if self._step == 0:
            self._warn_of_calls()
        self._step += 1
        self._attach()

    def _warn_of_calls(self) -> None:
        """Of layers that the first forward made, of calls of functions."""
        new = {p.name for p in watched_of(self._model) if not p.is_off} - self._products.keys()
        if new:
            warnings.warn(
                f"Monitor: {some(sorted(new), 4)} came with the first forward and are not "
                f"monitored; give quantize(..., example_inputs=...), or make the Monitor after it",
                stacklevel=3,
            )

    def stepped(self, optimizer: Optimizer) -> None:
        """An optimizer, of any model, has made an update."""
        if self._ends.ended_by(optimizer, self._step):
            self.end_step()

    def state_dict(self) -> dict[str, Any]:
        """The record as plain data, for a checkpoint between two steps."""
        own = {**self._settings(), "names": list(self._products), "step": self._step}
        return {**own, **self._record.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; ValueError, with nothing changed, where the state is
        of another model or other settings, or damaged."""
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            raise ValueError("Monitor: got no state of a monitor")
        for name in (*self._settings(), "names"):
            if state[name] != own[name]:
                raise ValueError(
                    f"Monitor: the state has {name}={state[name]!r:.200}, this monitor "
                    f"{own[name]!r:.200}; build it with the stored settings, on the same model"
                )
        step = checks.integer("Monitor: step of the state", state["step"], low=0)
        self._record.load_state_dict(state)
        self._attached.take()
        self._step = step
        self._ends = StepEnds(self._model)
        self._attach()

    def close(self) -> None:
        """Take it off the model; what is recorded stays.  A step that has not ended has no rows."""
        self._off()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _settings(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("every", "layers", "samples", "keep")}

    def _attach(self) -> None:
        """Put probes on the layers whose turn it is, if this step is one to record."""
        if self._step % self.every or not self._off.alive:
            return
        refuse_compiled(self._model)
        first = self._step // self.every % self._turns * self.layers
        names = list(self._products)[first : first + self.layers]
        self._attached.put({n: Recorder(self.samples, self._channels[n]) for n in names})


def _clear(handle: RemovableHandle, attached: Attached) -> None:
    handle.remove()
    attached.leave()

"""A run in progress: steps, evaluation, checkpoints, and the result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import data
from ..conversion.set_recipe import set_recipe
from ..hardware.environment import changed
from ..inspection.inspect import inspect
from ..inspection.monitor import Monitor
from ..inspection.report import Report
from ..recipe import Recipe
from ..reports.progress import Progress
from .attached import Attached
from .batches import epoch_batches, test_batches, total_steps, training_batch
from .beside import Beside
from .checkpoint import Checkpoint, CheckpointError, save_checkpoint
from .config import TrainConfig
from .folder import RunFolder, describe
from .hook import Hook
from .interrupt import Interrupted, StopRequest
from .intervals import accuracy_gap
from .loggers.logger import Logger, Loggers
from .metrics import MetricsLog, read_metrics
from .metrics_table import save_table
from .nonfinite import NonFiniteError
from .page import save_page
from .record import read_run
from .results import Result
from .trainee import Branch, learning_rate

#: Seconds after which a checkpoint is due, however long the run.
CHECKPOINT_SECONDS = 600.0
#: Steps between the metrics lines of single steps.
LOG_STEPS = 10


class Run:
    """The state of a run in progress; `done` counts steps, each of which trains every branch."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        dataset: data.DataSet,
        branches: list[Branch],
        device: torch.device,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.config, self.folder, self.dataset = config, folder, dataset
        self.branches, self.device = branches, device
        self.per_epoch = epoch_batches(config, dataset, epoch=0, start=0).total
        self.total = total_steps(config, dataset)
        self.recipes = config.quantizations()
        self.switches = self.recipes.begins(self.total)
        self.fingerprint = dataset.fingerprint()
        self.done, self.saved_at = 0, time.monotonic()
        self.right: dict[str, Tensor] = {}  # branch key -> which targets the last test met
        self.monitor: Monitor | None = None
        if config.monitor is not None:
            (quantized,) = (b.model for b in branches if b.key == "quantized")
            self.monitor = Monitor(quantized, config.monitor)
        self.hooks = Attached(config, hooks, branches[-1])

    def restore(self, stored: Checkpoint) -> None:
        """Continue from a checkpoint; CheckpointError where it does not fit."""
        where = str(self.folder.checkpoint)
        stored.check_data(self.fingerprint, self.config.data_dir, where=where)
        if stored.step > self.total or set(stored.branches) != {b.key for b in self.branches}:
            raise CheckpointError(f"{where}: of another run (step {stored.step} of {self.total})")
        set_recipe(self.branches[-1].model, self._recipe_of(stored.step - 1))
        for branch in self.branches:
            branch.load_state_dict(stored.branches[branch.key], where=where)
            samples = stored.step % self.per_epoch * self.config.batch_size
            if branch.samples != samples:
                got = f"got sums over {branch.samples} samples"
                raise CheckpointError(f"{where}: {got}, need {samples} at step {stored.step}")
        self.hooks.load(stored.hooks, where=where)
        if self.monitor is not None:
            try:
                self.monitor.load_state_dict(stored.monitor or {})
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{where}: {error}") from error
            if self.monitor.step != stored.step:
                got = f"got a monitor's record of {self.monitor.step} steps"
                raise CheckpointError(f"{where}: {got}, need {stored.step}")
        self.done = stored.step

    def _recipe_of(self, step: int) -> Recipe:
        return self.recipes.at(max(step, 0), self.total)

    def start_log(self, stored: Checkpoint | None, loggers: Sequence[Logger] = ()) -> None:
        """Open the metrics where the checkpoint left them; say what the run is and runs on."""
        self.environment = describe(self.folder, self.config, self.device)
        for difference in changed(stored.environment, self.environment) if stored else ():
            warnings.warn(f"resuming may change bits: {difference}", stacklevel=3)
        own = Loggers(loggers, self.folder.path, self.config.to_dict(), self.done)
        keep = stored.metrics_bytes if stored else 0
        self.log = MetricsLog(self.folder.metrics, keep=keep, loggers=own)
        (self.folder / "diverged.json").unlink(missing_ok=True)
        tests = -(-(self.total - self.done) // self.per_epoch)
        self.beside = Beside(tests, self.per_epoch, self.dataset)
        text, rest = self.config.run_name, self.beside
        self.progress = Progress(self.total, done=self.done, text=text, rest=rest)

    def train(self, stop: StopRequest) -> None:
        """The steps that are left; Interrupted, after a checkpoint, once `stop` is requested."""
        progress, where = self.progress, f"step {self.done}/{self.total}"
        if self.done < self.total:
            compiles = self.device.type != "cpu"  # of which quantizers says so when it is
            progress.line(where + "; the first may compile kernels, once a machine" * compiles)
        try:
            with stop.postponed():
                while self.done < self.total:
                    epoch, start = divmod(self.done, self.per_epoch)
                    self.hooks.before_epoch(epoch, self.done)
                    for batch in epoch_batches(self.config, self.dataset, epoch=epoch, start=start):
                        self._step(*batch)
                        progress.step()
                        if self.done % self.per_epoch == 0:
                            progress.line(self._end_epoch())
                        if stop.requested or self._checkpoint_due():
                            self.save()
                        progress.resume()
                        if stop.requested:
                            raise Interrupted(
                                f"stopped at step {self.done} of {self.total}; the same command "
                                f"with --resume continues from {self.folder.checkpoint}"
                            )
        except NonFiniteError as error:
            place = {"layer": error.layer, "role": error.role, "step": error.step}
            chance = {"classes": self.dataset.num_classes, "data": self.fingerprint}
            self.folder.write_json("diverged.json", {"message": str(error), **place, **chance})
            save_table(self.folder.metrics, self.folder / "metrics.csv")
            raise
        finally:
            self.log.close()

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        rate = learning_rate(self.config, self.done, self.per_epoch)
        set_recipe(self.branches[-1].model, self._recipe_of(self.done))
        recipe = self.switches.get(self.done)
        if recipe is not None and self.done:
            self.branches[-1].passes.restart()
            key = self.branches[-1].key
            self.log.write(kind="recipe", step=self.done, branch=key, recipe=str(recipe))
        for branch in self.branches:
            values = branch.step(inputs, targets, step=self.done, rate=rate)
            if self.done % LOG_STEPS == 0:
                self.log.write(kind="step", step=self.done, branch=branch.key, lr=rate, **values)
        if self.monitor is not None and self.done % self.monitor.every == 0:
            for row in self.monitor.rows:
                if row.step == self.done:
                    self.log.tell(kind="monitor", branch="quantized", **vars(row))
        self.done += 1

    def _end_epoch(self) -> str:
        """Evaluate, log, and say how the epoch went."""
        epoch, began = self.done // self.per_epoch, time.perf_counter()
        text = f"epoch {epoch}/{self.config.epochs}"
        columns = self.hooks.after_epoch(epoch - 1, self.done)
        for branch in self.branches:
            start = time.perf_counter()
            test_loss, correct = self._tested(branch)
            train_loss, accuracy = branch.loss_sum / branch.samples, correct.double().mean().item()
            self.log.write(
                kind="epoch", epoch=epoch, step=self.done, branch=branch.key,
                train_loss=train_loss, test_loss=test_loss, test_accuracy=accuracy,
                seconds=branch.seconds, test_seconds=time.perf_counter() - start,
                **(columns if branch is self.branches[-1] else {}),
            )  # fmt: skip
            text += f" | {branch.label}: loss {train_loss:.3f}, accuracy {accuracy:.4f}"
            branch.reset_sums()
        self.beside.tested(time.perf_counter() - began)
        return text

    def _tested(self, branch: Branch) -> tuple[float, Tensor]:
        found = branch.evaluate(test_batches(self.config, self.dataset, self.device))
        self.right[branch.key] = found[1]
        return found

    def _checkpoint_due(self) -> bool:
        every = self.config.checkpoint_every or max(self.total // 4, 1)
        late = time.monotonic() - self.saved_at > CHECKPOINT_SECONDS
        return self.done % every == 0 or self.done == self.total or late

    def save(self) -> None:
        """Write the checkpoint, after the metrics and the monitor's record that belong to it."""
        if self.monitor is not None:
            self.monitor.save(self.folder / "monitor.jsonl")
        if (update := self.branches[-1].update) is not None:
            update.report().save(self.folder / "updates.json")
        save_checkpoint(
            self.folder.checkpoint,
            Checkpoint(
                config=self.config.to_dict(),
                environment=self.environment,
                step=self.done,
                metrics_bytes=self.log.position(),
                branches={branch.key: branch.state_dict() for branch in self.branches},
                data=self.fingerprint,
                monitor=None if self.monitor is None else self.monitor.state_dict(),
                hooks=self.hooks.state(),
            ),
        )
        save_table(self.folder.metrics, self.folder / "metrics.csv")
        self.saved_at = time.monotonic()

    def finish(self) -> Result:
        """Compare, inspect, save."""
        if self.monitor is not None:
            self.monitor.close()
        quantized, gap = self.branches[-1], None
        if self.config.baseline:
            for branch in self.branches:  # none yet where it is resumed at its end
                if branch.key not in self.right:
                    self._tested(branch)
            gap = accuracy_gap(*(self.right[branch.key] for branch in self.branches))
        result = Result(
            config=self.config,
            folder=self.folder,
            epochs=read_metrics(self.folder.metrics, kind="epoch"),
            labels={branch.key: branch.label for branch in self.branches},
            models={branch.key: branch.model for branch in self.branches},
            gap=gap,
            report=self._inspect(quantized),
            monitor=self.monitor,
            data=self.fingerprint,
            classes=self.dataset.num_classes,
        )
        self.beside.inspected()
        self.progress.line("writing tables, plots and report.html")
        result.save()
        save_page(read_run(self.folder.path), self.folder / "report.html")
        return result

    def _inspect(self, branch: Branch) -> Report | None:
        last = self.recipes.last
        if last.products_off and last.lookup is None:
            return None
        self.progress.line("measuring the numeric error of every layer")
        batch = training_batch(self.config, self.dataset, self.device)
        return inspect(branch.model.train(), *batch, branch.scaled_loss)

"""The configuration of one training run; every flag of `qtrain train` is a field of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any

import quantizers

from .. import checks
from ..norms import deviations
from ..recipe import Recipe
from ..recipe_file import accumulator_of, find, is_text, lasting
from ..schedule import Schedule, beginnings
from ..weights.updates import named
from .config_checks import check_combinations, check_learned, check_numbers
from .fit import check_device, check_fit
from .given import dataset, hooks, model, optimizer, reference
from .loggers import named as loggers

SCHEDULES = ("cosine", "step", "constant")
#: Formats of `activation`; fp32 means that outputs are not rounded.
ACTIVATIONS = ("fp32", "fp16", "bf16")
#: `norm`: what the recipe itself says.
OWN_NORM = "recipe"
_SINCE = {
    "switch": [],
    "zero_init_residual": False,
    "holdout": None,
    "capture": True,
    "update": None,
    "accumulator": None,
    "hooks": [],
    "loss_scale": 1.0,
}  # fields that older versions had not
#: Fields that say where and how a run executes, not what it computes.
NOT_COMPARED = (
    "data_dir", "cache_dir", "device", "threads", "workers", "runs_dir", "name", "resume",
    "overwrite", "checkpoint_every", "capture", "log",
)  # fmt: skip


def _option(default: Any, text: str) -> Any:
    """A field with the help text that the shell shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train, on what, how; checked at construction (ValueError or TypeError).

    recipe: a name, a file, a Recipe or a Schedule, whose later recipes become `switch`.  Kept as
    the name, or as the text of a recipe's file, so that a run needs no file.
    """

    recipe: Any = field(  # text, after construction
        metadata={"help": "quantization recipe, its name or its .yaml file"}
    )
    switch: tuple[str, ...] = _option(
        (), "later recipes: 0.9:bf16 for the last tenth, 500:mine.yaml from step 500"
    )
    bits: int | None = _option(None, "bits of a recipe that takes them, 2 to 16")
    norm: str | None = _option(
        None,
        "deviation of the norms, e.g. range; recipe: its own, whatever a named run says",
    )
    update: str | None = _option(
        None, "weights and states in few bits: a name, e.g. bf16-kahan, or a .yaml file"
    )
    accumulator: str | None = _option(
        None, "what sums all products, e.g. 'sequential(fp16, chunk=64)'; default: recipe's"
    )
    activation: str | None = _option(None, "format of outputs: fp32, fp16, bf16; default: recipe's")
    model: str = _option(
        "resnet18", "name, timm:NAME, torchvision:NAME, package.module:function, file.py:function"
    )
    zero_init_residual: bool = _option(False, "scale 0 in the last norm of residual branches")
    data: str = _option("digits", "name, package.module:function or file.py:function")
    data_dir: str | None = _option(None, "folder of the data set (text: or file); not for digits")
    image_size: int | None = _option(None, "pixels, 8 to 1024, to which image files are resized")
    context: int | None = _option(None, "characters in a window of text, 2 to 65536; default: 128")
    cache_dir: str | None = _option(None, "folder for decoded images of an image folder")
    holdout: float | None = _option(
        None, "part of the training set, below 1, to test on instead of the test set: for tuning"
    )
    epochs: int = _option(8, "passes over the training set")
    batch_size: int = _option(64, "samples per step")
    optimizer: str = _option(
        "sgd", "sgd, adamw, or a function of (model, config), package.module:function"
    )
    lr: float = _option(0.02, "learning rate after the warm-up, per step of batch-size samples")
    momentum: float = _option(0.9, "sgd's momentum, or adamw's first beta")
    nesterov: bool = _option(False, "Nesterov momentum (sgd)")
    weight_decay: float = _option(5e-4, "decay of weights; norms and biases are exempt")
    decay_all: bool = _option(False, "decay norms and biases too")
    schedule: str = _option("cosine", "cosine (to 0), step or constant")
    milestones: tuple[int, ...] = _option((), "epochs at which schedule step multiplies by gamma")
    gamma: float | None = _option(None, "factor of schedule step; default: 0.1")
    warmup: float | None = _option(
        None, "epochs of linear warm-up; default: a quarter of the run, at most 2"
    )
    clip_grad: float | None = _option(None, "largest gradient norm; default: no clipping")
    loss_scale: float = _option(
        1.0, "the loss is this large in the backward pass; gradients are divided by it after"
    )
    label_smoothing: float = _option(0.0, "label smoothing of the training loss")
    seed: int = _option(0, "seed of the initial weights, data order, dropout and rounding noise")
    baseline: bool = _option(True, "train full precision side by side")
    device: str = _option("auto", "cpu, cuda, cuda:N, or auto: cuda where there is one")
    threads: int | None = _option(None, "CPU threads; default: torch's own choice")
    capture: bool = _option(True, "on a GPU, replay a step's passes as a CUDA graph")
    workers: int = _option(0, "processes that decode images")
    checkpoint_every: int | None = _option(
        None, "steps between checkpoints; default: a quarter of the run, at most 10 minutes"
    )
    hooks: tuple[str, ...] = _option(
        (), "called around epochs: package.module:function or file.py:function, that makes a Hook"
    )
    monitor: int | None = _option(None, "steps between records of 8 layers' errors; default: none")
    log: tuple[str, ...] = _option((), "where metrics go too, live: tensorboard, wandb")
    runs_dir: str = _option("runs", "folder of all runs")
    name: str | None = _option(None, "folder of this run; default: recipe-model-data-seed")
    resume: bool = _option(False, "continue from this run's checkpoint, if there is one")
    overwrite: bool = _option(False, "replace an earlier run of this name")

    def __post_init__(self) -> None:
        checks.instance("switch", self.switch, tuple, 'a tuple such as ("0.9:bf16",)')
        if isinstance(self.recipe, Schedule):
            self._take(self.recipe)
        later = tuple(f"{when}:{lasting(name)}" for when, name in beginnings(self.switch))
        object.__setattr__(self, "recipe", lasting(self.recipe))
        object.__setattr__(self, "switch", later)
        if self.update is not None:
            object.__setattr__(self, "update", named.lasting(self.update))
        self.quantizations()
        if self.norm is not None:
            checks.choice("norm", self.norm, [*deviations.names(), OWN_NORM])
        model.check(self.model, zero_init_residual=self.zero_init_residual)
        dataset.check(self.data)
        check_fit(self.model, self.data)
        optimizer.check(self.optimizer)
        hooks.check(self.hooks)
        checks.choice("schedule", self.schedule, SCHEDULES)
        for name in ("data_dir", "cache_dir", "name"):
            if not isinstance(getattr(self, name), str | None):
                raise TypeError(f"{name}: got {checks.shown(getattr(self, name))}, need a string")
        loggers.check(self.log)
        check_numbers(self)
        check_combinations(self)
        check_learned(self)
        check_device(self.device)

    def _take(self, schedule: Schedule) -> None:
        if self.switch:
            raise ValueError(f"switch: got {self.switch} beside a Schedule, which says it all")
        (_, first), *later = schedule.items()
        object.__setattr__(self, "recipe", first)
        object.__setattr__(self, "switch", tuple(f"{w!r}:{lasting(r)}" for w, r in later))

    @property
    def run_name(self) -> str:
        """The run's folder: the same command always has the same name."""
        if self.name is not None:
            return self.name
        bits = [] if self.bits is None else [f"{self.bits}bit"]
        (_, first), *later = self._names()
        own = [first, *bits, *(f"{name}@{when:g}" for when, name in later)]
        own += [] if self.accumulator is None else re.findall(r"\w+", self.accumulator)
        own += [] if self.update is None else [named.short(self.update)]
        parts = [reference.short(self.model), reference.short(self.data)]
        return "-".join([*own, *parts, f"seed{self.seed}"])

    @property
    def warmup_epochs(self) -> float:
        """The length of the warm-up."""
        return min(2.0, self.epochs / 4) if self.warmup is None else self.warmup

    @property
    def label(self) -> str:
        """How tables and plots call the quantized curve."""
        (_, first), *later = self._names()
        bits = "" if self.bits is None else f" at {self.bits} bits"
        sums = "" if self.accumulator is None else f", sums {self.accumulator}"
        update = "" if self.update is None else f", update {named.short(self.update)}"
        names = [first + bits, *(f"{name} from {when:g}" for when, name in later)]
        return ", ".join(names) + sums + update

    def _names(self) -> list[tuple[float, str]]:
        """When each recipe begins, and its name."""
        given = [(0.0, self.recipe), *beginnings(self.switch)]
        return [(when, find(name).name) for when, name in given]

    def quantization(self) -> Recipe:
        """The recipe with its bits, accumulator and outputs; ValueError where it takes none."""
        return self._with_own(find(self.recipe, self.bits))

    def quantizations(self) -> Schedule:
        """The same, and those that it switches to."""
        later = {w: self._with_own(find(name)) for w, name in beginnings(self.switch)}
        return Schedule({0: self.quantization(), **later})

    def _with_own(self, recipe: Recipe) -> Recipe:
        if self.accumulator is not None:
            recipe = replace(recipe, accumulator=accumulator_of(self.accumulator))
        if self.activation is None:
            return recipe
        checks.choice("activation", self.activation, ACTIVATIONS)
        chosen = None if self.activation == "fp32" else getattr(quantizers, self.activation)
        return replace(recipe, activation=chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainConfig:
        """The configuration that `to_dict` wrote; ValueError for a field that there is none of."""
        known = [f.name for f in fields(TrainConfig)]
        given: dict[str, Any] = {}
        for name, value in values.items():
            checks.choice("configuration field", name, known)
            given[name] = tuple(value) if isinstance(value, list) else value
        return TrainConfig(**given)

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """Fields, with both values, in which a stored run would compute something else."""
        mine, theirs = self.to_dict(), {**_SINCE, **stored}
        names = [n for n in mine if n not in NOT_COMPARED and theirs.get(n) != mine[n]]
        return [
            "{} (stored {!r}, now {!r})".format(n, *_apart(theirs.get(n), mine[n])) for n in names
        ]


def default_of(option: Field[Any]) -> Any:
    """A field's default, or None where it has none."""
    return None if option.default is MISSING else option.default


def _apart(a: object, b: object) -> tuple[object, object]:
    """Two values, of recipes' files the lines that the other has not."""
    if not is_text(a) or not is_text(b):
        return a, b
    one, other = (str(text).splitlines() for text in (a, b))
    lines = [line.strip() for line in one if line not in other]
    return "; ".join(lines), "; ".join(line.strip() for line in other if line not in one)

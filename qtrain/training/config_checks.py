"""What a training configuration may say: ValueError or TypeError for anything else."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from .. import checks
from ..recipe.slots import short


def check_numbers(c: Any) -> None:
    """Of a TrainConfig: every number within its bounds, every switch one."""
    checks.integer("epochs", c.epochs, low=1, high=10**6, hint="say epochs=8")
    checks.integer("batch_size", c.batch_size, low=1, high=10**9, hint="say batch_size=64")
    checks.integer("seed", c.seed, low=0, high=2**63 - 1, hint="say seed=0")
    checks.integer("workers", c.workers, low=0, high=256, hint="0 decodes in this process")
    bounds = {
        "image_size": (8, 1024),
        "context": (2, 65536),
        "threads": (1, 1024),
        "checkpoint_every": (1, 10**12),
        "monitor": (1, 10**12),
    }
    for name, (low, high) in bounds.items():
        if getattr(c, name) is not None:
            hint = "leave it out for the default"
            checks.integer(name, getattr(c, name), low=low, high=high, hint=hint)
    checks.number("lr", c.lr, low=0, positive=True, hint="say lr=0.02")
    checks.number("momentum", c.momentum, low=0, high=1, hint="0 is none")
    checks.number("weight_decay", c.weight_decay, low=0, hint="0 is none")
    if c.holdout is not None:
        checks.number("holdout", c.holdout, low=0, high=1, positive=True, hint="say holdout=0.1")
    if c.gamma is not None:
        checks.number("gamma", c.gamma, low=0, high=1, positive=True, hint="say gamma=0.1")
    if c.warmup is not None:
        checks.number("warmup", c.warmup, low=0, hint="0 is none")
    checks.number("loss_scale", c.loss_scale, low=0, positive=True, hint="1 is none, say 1024")
    checks.number("label_smoothing", c.label_smoothing, low=0, high=1, hint="0 is none")
    if c.clip_grad is not None:
        checks.number("clip_grad", c.clip_grad, low=0, positive=True, hint="leave it out for none")
    for name in ("nesterov", "decay_all", "baseline", "capture", "resume", "overwrite"):
        checks.boolean(name, getattr(c, name))


def check_combinations(c: Any) -> None:
    """Of a TrainConfig: fields that only go together with others."""
    if not isinstance(c.milestones, tuple):
        raise TypeError(
            f"milestones: got {checks.shown(c.milestones)}, need a tuple of epochs, e.g. (4, 6)"
        )
    for epoch in c.milestones:
        checks.integer("milestones", epoch, low=1, high=c.epochs, hint="epochs of this run")
    if (c.schedule == "step") != bool(c.milestones):
        raise ValueError(
            f"milestones: got {c.milestones!r} with schedule {c.schedule!r}; "
            "schedule='step' needs them and no other schedule takes them"
        )
    if c.gamma is not None and c.schedule != "step":
        raise ValueError(f"gamma: got {c.gamma} with schedule {c.schedule!r}; only 'step' takes it")
    if c.warmup is not None and c.warmup > c.epochs:
        raise ValueError(f"warmup: got {c.warmup}, need at most the {c.epochs} epochs of this run")
    if c.nesterov and (c.optimizer != "sgd" or c.momentum == 0):
        raise ValueError(
            f"nesterov: got True with {c.optimizer} and momentum {c.momentum}; "
            "it needs sgd with momentum above 0"
        )
    recipe = c.quantization()
    if c.monitor is not None and recipe.products_off and recipe.lookup is None:
        raise ValueError(
            f"monitor: got {c.monitor}, but recipe {recipe.name!r} quantizes no product: "
            "there is no error to record; leave monitor out, or choose another recipe"
        )
    if c.resume and c.overwrite:
        raise ValueError("resume and overwrite: got both; resume keeps what overwrite deletes")
    if not isinstance(c.runs_dir, str) or not c.runs_dir or not c.runs_dir.isprintable():
        raise ValueError(
            f"runs_dir: got {checks.shown(c.runs_dir)}, need a folder; the default is runs"
        )
    bad = c.run_name in ("", ".", "..") or not c.run_name.isprintable()
    if bad or any(s in c.run_name for s in "/\\"):
        raise ValueError(
            f"name: got {c.name!r}, which makes {c.run_name!r}; need the name of a folder, with no "
            "slash in it and no character that does not print"
        )


def check_learned(c: Any) -> None:
    """Of a TrainConfig: what the recipes it switches to learn has been there from the start, when
    the optimizer is built."""
    for (_, before), (when, after) in pairwise(c.quantizations().items()):
        for slot in after.learned:
            old, new = before.slot(*slot), after.slot(*slot)
            grains = [getattr(quantizer, "granularity", None) for quantizer in (old, new)]
            if type(old) is not type(new) or grains[0] != grains[1]:
                raise ValueError(
                    f"switch: got {when:g}:{after.name}, whose {'.'.join(slot)}, {short(new)}, "
                    f"learns what {before.name} has not; the optimizer is built before: begin with "
                    f"such a recipe, its bits may change, or, in a loop of your own, "
                    f"add_param_group after set_recipe"
                )

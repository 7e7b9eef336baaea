"""The training run: a quantized model beside its full-precision twin, resumable bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..conversion.quantize import quantize
from ..conversion.set_recipe import set_recipe
from ..copies import copied
from ..data import DataSet
from ..data.parts import held_out
from ..files import terminal
from ..recipe import Recipe
from ..reports.numbers import count
from ..schedule import Schedule
from .batches import total_steps, training_batch
from .checkpoint import CheckpointError, load_checkpoint
from .config import OWN_NORM, TrainConfig
from .folder import open_run
from .given import dataset as given_data
from .given import hooks as given_hooks
from .given import model as given_model
from .given.dataset import Data
from .given.model import Model
from .given.reference import is_reference
from .given.rehearsal import channels_last_, rehearsed
from .hook import Hook
from .interrupt import StopRequest
from .loggers.logger import Logger
from .loggers.named import made
from .results import Result
from .run import Run
from .trainee import Branch


def train(
    config: TrainConfig,
    *,
    model: Model | None = None,
    data: Data | None = None,
    hooks: Iterable[Hook | Callable[..., Hook]] = (),
    loggers: Sequence[Logger] = (),
    say: Callable[[str], None] | None = None,
) -> Result:
    """Train as `config` says and write runs/<name>/; `say` takes remarks (default: stderr).

    model   in place of the configuration's: a function or class that is called with those of the
            data's sizes (num_classes, in_channels, image_size, context) that its signature names,
            and returns an nn.Module; or an nn.Module, from whose weights both branches start (it
            is copied, and stays as it is)
    data    in place of the configuration's: a qtrain DataSet; a pair (train, test) of map-style
            torch Datasets of (input, target), or of DataLoaders; or a function that makes one of
            these, called with those of data_dir, image_size, context and cache_dir that are set
    hooks   what is called around its epochs, beside those that the configuration names: Hooks, or
            functions or classes that make one, of no argument or of `config`
    loggers objects that are given every line of the metrics as it is written, beside those that
            the configuration names (`log`)

    The configuration that is kept has these as text: the reference "package.module:function", of a
    script "file.py:function", where there is one, else "given:NAME"; a run of these is read again
    by whoever gives the value again.

    Raises ValueError for what cannot run (CheckpointError, DataError among them), NonFiniteError
    for a NaN, Interrupted after Ctrl-C or SIGTERM; warns where a resumed run's machine differs.
    torch's random state and settings are left as they were.
    """
    checks.instance("config", config, TrainConfig, "a TrainConfig, as training_recipe(name) makes")
    if say is not None:
        checks.function("say", say, "a function of a line of text, or None", "")
    report = say or terminal.say
    own_hooks = given_hooks.listed(hooks)
    config = recorded(config, model, data)
    config = replace(config, hooks=given_hooks.recorded(config.hooks, own_hooks))
    every = made(config.log, loggers)
    device = _device(config.device)
    with StopRequest() as stop, _settings(config, device):
        dataset = load_data(config, data).to(device)
        config.quantizations().begins(total_steps(config, dataset))
        branches = build_branches(config, dataset, device, model)
        attached = given_hooks.made(config, own_hooks)
        with open_run(config, say=report) as (folder, stored):
            epochs = count(config.epochs, "epoch")
            report(f"{config.run_name}: {config.model} on {config.data}, {epochs}")
            if crowded := _crowded(config, device):
                report(crowded)
            run = Run(config, folder, dataset, branches, device, attached)
            if stored is not None:
                run.restore(stored)
                report(f"{folder.path}: resuming at step {run.done} of {run.total}")
            run.start_log(stored, every)
            with closing(run.progress):
                run.train(stop)
                return run.finish()


def recorded(config: TrainConfig, model: Model | None, data: Data | None) -> TrainConfig:
    """The configuration with what was given in place of its model and data, as text."""
    if model is not None:
        config = replace(config, model=given_model.recorded(model))
    return config if data is None else replace(config, data=given_data.recorded(data))


def build_branches(
    config: TrainConfig, dataset: DataSet, device: torch.device, model: Model | None = None
) -> list[Branch]:
    """The models to train, from one seeded initialisation: the baseline first, if wanted."""
    network = given_model.build(
        config.model,
        model,
        dataset.sizes,
        seed=config.seed,
        zero_init_residual=config.zero_init_residual,
    )
    last = True  # channels
    if is_reference(config.model) or is_reference(config.data):
        last = rehearsed(config, network, dataset)
    norm = None if config.norm == OWN_NORM else config.norm
    quantized = quantize(network, recipe=_recipes(config), norm=norm, seed=config.seed)
    pairs = [("quantized", config.label, quantized)]
    if config.baseline:
        pairs.insert(0, ("baseline", "full precision", copied(network)))
    for _, _, own in pairs:
        own.to(device)
        if last:
            channels_last_(own)
    return [Branch(key, label, own, config) for key, label, own in pairs]


def _recipes(config: TrainConfig) -> Recipe | Schedule:
    return config.quantizations() if config.switch else config.quantization()


def load_data(config: TrainConfig, data: Data | None = None) -> DataSet:
    """The configuration's data set, or of what was given, with a part held out where it says so;
    DataError where it is missing or damaged."""
    found = given_data.load(config, data)
    return found if config.holdout is None else held_out(found, config.holdout)


@contextmanager
def restored(
    path: Path,
    *,
    model: Model | str | None = None,
    data: Data | str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """A checkpoint's quantized model in training mode, and its run's first training batch: inputs
    and targets.

    model, data: as `train` takes them, of a run whose configuration says given:NAME, or in place
    of what it says; or as TrainConfig has them, names and references.

    CheckpointError where the checkpoint does not fit its own configuration or the data is not that
    of the run.
    """
    checkpoint, where = load_checkpoint(path), str(path)
    here = {"device": device, "threads": None, "workers": 0}  # not those of another machine
    said = {"model": model, "data": data}
    named: dict[str, Any] = {name: value for name, value in said.items() if isinstance(value, str)}
    model, data = (None if isinstance(value, str) else value for value in said.values())
    try:
        config = TrainConfig.from_dict({**checkpoint.config, **here})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where}: its configuration is refused: {error}") from error
    if data_dir is not None:
        named["data_dir"] = data_dir
    config = replace(config, **named)
    on = _device(config.device)
    with _settings(config, on):
        dataset = load_data(config, data).to(on)
        checkpoint.check_data(dataset.fingerprint(), config.data_dir, where=where)
        branch = build_branches(config, dataset, on, model)[-1]
        total = total_steps(config, dataset)
        step = min(max(checkpoint.step, 1), total) - 1  # the last that was done
        set_recipe(branch.model, config.quantizations().at(step, total))
        branch.load_state_dict(checkpoint.branches.get("quantized"), where=where)
        yield branch.model.train(), *training_batch(config, dataset, on)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: got {name!r}, but torch sees {torch.cuda.device_count()} GPUs")
    return device


def _crowded(config: TrainConfig, device: torch.device) -> str:
    """What to say where others keep the cores busy: threads that wait for one another then cost
    more than they bring.  "" where they do not, or the threads were chosen."""
    cores = os.cpu_count() or 1
    if config.threads is not None or device.type != "cpu" or not hasattr(os, "getloadavg"):
        return ""
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    if load < cores or threads == 1:
        return ""
    return (
        f"others keep this machine busy (load {load:.1f} on {count(cores, 'core')}): with "
        f"--threads 1 this may end sooner than with {threads}"
    )


@contextmanager
def _settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """The run's threads and repeatable, true fp32 kernels; restores them and the random state.

    Weights are drawn, and files read, on the CPU, whatever default device the caller has set.
    """
    threads = torch.get_num_threads()
    cudnn = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    usual = torch.get_default_device().type == "cpu"  # torch.device costs a little at every call
    on_cpu = nullcontext() if usual else torch.device("cpu")
    random = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with random, cudnn, on_cpu:
        try:
            if config.threads is not None:
                torch.set_num_threads(config.threads)
            yield
        finally:
            torch.set_num_threads(threads)

"""The training run: a quantized model beside its full-precision twin, resumable bit for bit."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import checks, data, models
from ..conversion.quantize import quantize
from ..conversion.set_recipe import set_recipe
from ..files import terminal
from ..recipe import Recipe
from ..schedule import Schedule
from .checkpoint import CheckpointError, load_checkpoint
from .config import OWN_NORM, TrainConfig
from .folder import open_run
from .interrupt import StopRequest
from .results import Result
from .run import Run, total_steps, training_batch
from .trainee import Branch


def train(config: TrainConfig, *, say: Callable[[str], None] | None = None) -> Result:
    """Train as `config` says and write runs/<name>/; `say` takes remarks (default: stderr).

    Raises ValueError for what cannot run (CheckpointError, DataError among them), NonFiniteError
    for a NaN, Interrupted after Ctrl-C or SIGTERM; warns where a resumed run's machine differs.
    torch's random state and settings are left as they were.
    """
    checks.instance("config", config, TrainConfig, "a TrainConfig, as training_recipe(name) makes")
    if say is not None:
        checks.function("say", say, "a function of a line of text, or None", "")
    report = say or terminal.say
    device = _device(config.device)
    with StopRequest() as stop, _settings(config, device):
        dataset = load_data(config).to(device)
        config.quantizations().begins(total_steps(config, dataset))
        branches = build_branches(config, dataset, device)
        with open_run(config, say=report) as (folder, stored):
            run = Run(config, folder, dataset, branches, device)
            if stored is not None:
                run.restore(stored)
                report(f"{folder.path}: resuming at step {run.done} of {run.total}")
            run.start_log(stored)
            run.train(stop)
            return run.finish()


def build_branches(
    config: TrainConfig, dataset: data.DataSet, device: torch.device
) -> list[Branch]:
    """The models to train, from one seeded initialisation: the baseline first, if wanted."""
    torch.manual_seed(config.seed)
    options = {"zero_init_residual": config.zero_init_residual}
    network = models.get(config.model, **dataset.sizes, **options)
    norm = None if config.norm == OWN_NORM else config.norm
    quantized = quantize(network, recipe=_recipes(config), norm=norm, seed=config.seed)
    pairs = [("quantized", config.label, quantized)]
    if config.baseline:
        pairs.insert(0, ("baseline", "full precision", copy.deepcopy(network)))
    layout = torch.channels_last  # in which convolutions of codes and the norms behind them run
    return [
        Branch(key, label, model.to(device).to(memory_format=layout), config)  # type: ignore[call-overload]
        for key, label, model in pairs
    ]


def _recipes(config: TrainConfig) -> Recipe | Schedule:
    return config.quantizations() if config.switch else config.quantization()


def load_data(config: TrainConfig) -> data.DataSet:
    """The configuration's data set; DataError where it is missing or damaged."""
    return data.load(
        config.data,
        data_dir=_folder(config.data_dir),
        image_size=config.image_size,
        context=config.context,
        workers=config.workers,
        cache_dir=_folder(config.cache_dir),
    )


def _folder(name: str | None) -> str | None:
    """`name` with ~ as the home folder: no shell does that in --data-dir=~/x."""
    return None if name is None else os.path.expanduser(name)


@contextmanager
def restored(
    path: Path, *, data_dir: str | None = None, device: str = "auto"
) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """A checkpoint's quantized model in training mode, and its run's first training batch: inputs
    and targets.

    CheckpointError where the checkpoint does not fit its own configuration or the data is not that
    of the run.
    """
    checkpoint, where = load_checkpoint(path), str(path)
    here = {"device": device, "threads": None, "workers": 0}  # not those of another machine
    try:
        config = TrainConfig.from_dict({**checkpoint.config, **here})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where}: its configuration is refused: {error}") from error
    if data_dir is not None:
        config = replace(config, data_dir=data_dir)
    on = _device(config.device)
    with _settings(config, on):
        dataset = load_data(config).to(on)
        checkpoint.check_data(dataset.fingerprint(), config.data_dir, where=where)
        branch = build_branches(config, dataset, on)[-1]
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

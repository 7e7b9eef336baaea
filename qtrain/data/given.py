"""Data sets that Python is given: a DataSet, or torch's own Datasets and DataLoaders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from .dataset import DataSet
from .errors import DataError
from .samples import DatasetSplit, class_names

_NEED = (
    "a qtrain DataSet, a pair (train, test) of map-style torch Datasets of (input, target), or a "
    "pair of DataLoaders"
)


def is_data(value: object) -> bool:
    """Whether it is one of the values that `data_set` takes, as far as its type says."""
    return isinstance(value, DataSet | Dataset | DataLoader | tuple | list)


def data_set(name: str, value: Any, *, batch_size: int, workers: int = 0) -> DataSet:
    """The DataSet of what was given.

    value       a DataSet, as it is; or (train, test), each a map-style Dataset or a DataLoader, of
                which the dataset, collate_fn and num_workers are taken: the order of samples is a
                function of (seed, epoch), and a last short batch of training is left out
    batch_size  the run's: a DataLoader for training has the same
    workers     processes that read batches; 0: as many as the DataLoader has, else none

    DataError for anything else, naming what of a DataLoader cannot be kept.
    """
    if isinstance(value, DataSet):
        return value
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = f"{type(value).__name__}"
        got += f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise DataError(f"data: {name!r} is a {got}, need {_NEED}")
    splits = [
        _split(f"{name} ({part})", one, batch_size if part == "train" else None, workers)
        for part, one in zip(("train", "test"), value, strict=True)
    ]
    names = class_names(splits[0].dataset) or class_names(splits[1].dataset)
    count = len(names) or max(split.num_classes for split in splits)
    train, test = (_of_classes(split, count) for split in splits)
    classes = names or map(str, range(count))
    return DataSet(name=name, train=train, test=test, classes=tuple(classes))


def _of_classes(split: DatasetSplit, count: int) -> DatasetSplit:
    return replace(split, num_classes=count)


def _split(source: str, value: Any, batch_size: int | None, workers: int) -> DatasetSplit:
    if not isinstance(value, DataLoader):
        return DatasetSplit(dataset=value, workers=workers, source=source)
    _check_loader(source, value, batch_size)
    usual = getattr(value.collate_fn, "__module__", "").startswith("torch.utils.data")
    return DatasetSplit(
        dataset=value.dataset,
        collate=None if usual else value.collate_fn,
        workers=workers or value.num_workers,
        source=source,
    )


def _check_loader(source: str, loader: DataLoader[Any], batch_size: int | None) -> None:
    """DataError for what of a DataLoader a run would not keep; batch_size: None leaves it open."""
    wrong = ""
    sampler = loader.sampler
    if type(loader.batch_sampler) is not BatchSampler:
        wrong = "makes its batches in a way of its own (batch_sampler, or batch_size=None)"
    elif type(sampler) not in (RandomSampler, SequentialSampler):
        wrong = f"has a sampler of its own, {type(sampler).__name__}"
    elif isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples != len(loader.dataset)  # type: ignore[arg-type]
    ):
        wrong = "draws with replacement, or not all samples"
    elif loader.worker_init_fn is not None:
        wrong = "has a worker_init_fn"
    elif batch_size is not None and loader.batch_size != batch_size:
        wrong = f"has batches of {loader.batch_size}, and the run of {batch_size} (batch_size)"
    elif batch_size is None and loader.drop_last:
        wrong = "drops its last batch (drop_last), and all samples are judged"
    if wrong:
        raise DataError(
            f"{source}: got a DataLoader that {wrong}; of one the dataset, collate_fn and "
            f"num_workers are taken, and the order is a function of (seed, epoch): leave that out, "
            f"or give the Datasets, data=(train, test)"
        )

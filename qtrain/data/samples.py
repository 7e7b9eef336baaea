"""A split over a map-style torch Dataset of (input, target)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from . import draws
from .batches import loaded
from .drawing import drawing_from, seed_all
from .errors import DataError, check_range

Collate = Callable[[list[Any]], Any]
#: samples that are read at once where all targets have to be
_CHUNK = 256
_LOSS = "train's loss is the cross-entropy of class indices"


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetSplit:
    """The samples of a map-style Dataset, whose own transforms apply.

    dataset      len(dataset), and dataset[i] -> (input, target); a TensorDataset of two tensors is
                 read a batch at a time
    collate      a list of samples -> (inputs, targets): torch's default_collate, if none is given
    workers      processes that read batches
    source       what errors call it
    truth        the targets of all samples, int64 (N,) or (N, T); from a TensorDataset's tensor or
                 the dataset's `targets` or `labels` where these are what its samples say, else
                 every sample is read once
    num_classes  the dataset's `classes`, or as many as the targets show

    inputs are tensors (N, ...) of any dtype, targets class indices, int64, (N,) or (N, T).
    Transforms that draw from the global generators of torch, numpy and Python draw from (seed,
    epoch, sample), whatever came before; these generators are left as they were.  Transforms with
    a generator of their own are beyond reach.  Evaluation, and training without `augment`, draws
    as sample by sample of seed 0, epoch 0.

    DataError for no samples, and for inputs and targets of another kind.
    """

    dataset: Dataset[Any]
    collate: Collate | None = None
    workers: int = 0
    source: str = "data"
    num_classes: int = 0
    truth: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        kind, numbered = type(self.dataset), hasattr(self.dataset, "__getitem__")
        if isinstance(self.dataset, IterableDataset | dict | str | Tensor) or not (
            numbered and hasattr(self.dataset, "__len__")
        ):
            raise DataError(
                f"{self.source}: got a {kind.__name__}, need a map-style Dataset, with __len__ and "
                f"__getitem__: samples that have a number, in an order"
            )
        if len(self) == 0:
            raise DataError(f"{self.source}: holds no samples")
        if self.truth.numel() == 0:
            object.__setattr__(self, "truth", self._truth())
        if self.num_classes == 0:
            names = class_names(self.dataset)
            most = len(names) if names else max(int(self.truth.max()), 0) + 1
            object.__setattr__(self, "num_classes", most)
        check_range(self.truth, self.num_classes, self.source, "target")

    @property
    def sizes(self) -> dict[str, int]:
        """num_classes; in_channels and image_size of inputs (C, S, S); context, where targets are
        (N, T)."""
        inputs, targets = self._first
        sizes = {"num_classes": self.num_classes}
        if inputs.dim() == 4 and inputs.shape[2] == inputs.shape[3]:
            sizes |= {"in_channels": inputs.shape[1], "image_size": inputs.shape[2]}
        return sizes | ({"context": targets.shape[1]} if targets.dim() == 2 else {})

    @property
    def _first(self) -> tuple[Tensor, Tensor]:
        return self.read(np.zeros(1, dtype=np.int64), seed=0, epoch=0, augment=False)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> DatasetSplit:
        """The same split, a TensorDataset's tensors on a device."""
        if not self._in_memory:
            return self
        tensors = [tensor.to(device) for tensor in self.dataset.tensors]  # type: ignore[attr-defined]
        return replace(self, dataset=TensorDataset(*tensors))

    @property
    def _in_memory(self) -> bool:
        return type(self.dataset) is TensorDataset and self.collate is None

    def read(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        """The samples `indices` (N,) -> inputs (N, ...), targets (N,) or (N, T) int64."""
        if self._in_memory:
            tensors = self.dataset.tensors  # type: ignore[attr-defined]
            places = torch.from_numpy(indices)
            return self._checked(tuple(x[places.to(x.device)] for x in tensors), len(indices))
        seed, epoch = (seed, epoch) if augment else (0, 0)
        seeds = draws.bits(indices, seed=seed, epoch=epoch, purpose=draws.SAMPLE)
        with drawing_from(0):
            samples = []
            for index, own in zip(indices.tolist(), seeds.tolist(), strict=True):
                seed_all(own)
                samples.append(self.dataset[index])
            return self._checked(self._collated(samples), len(indices))

    def _collated(self, samples: list[Any]) -> Any:
        if self.collate is not None:
            return self.collate(samples)
        try:
            return default_collate(samples)
        except (TypeError, RuntimeError) as error:  # of pictures, and of shapes that differ
            text = " ".join(str(error).split())
            raise DataError(
                f"{self.source}: its samples make no batch ({text}); need inputs that are tensors "
                f"of one shape, as a transform or a DataLoader's collate_fn makes them"
            ) from error

    def _checked(self, batch: Any, count: int) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            size = f" of {len(batch)}" if isinstance(batch, tuple | list | dict) else ""
            raise DataError(
                f"{self.source}: its samples are a {type(batch).__name__}{size}, need (input, "
                f"target); a Dataset or collate_fn of your own can make them so"
            )
        inputs, targets = batch
        if not isinstance(inputs, Tensor) or inputs.shape[:1] != (count,):
            raise DataError(
                f"{self.source}: inputs are {_kind(inputs)}, need a tensor ({count}, ...)"
            )
        fits = isinstance(targets, Tensor) and targets.dtype == torch.int64
        if not fits or targets.dim() not in (1, 2) or targets.shape[0] != count:
            raise DataError(
                f"{self.source}: targets of {count} samples are {_kind(targets)}; {_LOSS}: need "
                f"int64 of shape ({count},) or ({count}, T)"
            )
        return inputs, targets

    def _truth(self) -> Tensor:
        """What every sample's target is."""
        if self._in_memory:
            tensors = self.dataset.tensors  # type: ignore[attr-defined]
            return self._checked(tensors, len(self))[1].cpu()
        told = _told(self.dataset)
        probe = np.unique(np.linspace(0, len(self) - 1, 3).astype(np.int64))
        if told is not None and self.collate is None:
            targets = self.read(probe, seed=0, epoch=0, augment=False)[1]
            if torch.equal(told[torch.from_numpy(probe)], targets):
                return told
        read = partial(_targets, self)
        found = list(loaded(read, range(-(-len(self) // _CHUNK)), self.workers))
        if len({one.shape[1:] for one in found}) > 1:
            raise DataError(f"{self.source}: targets differ in length; need one T for all")
        return torch.cat(found)


def _targets(split: DatasetSplit, chunk: int) -> Tensor:
    indices = np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(split)))
    return split.read(indices, seed=0, epoch=0, augment=False)[1]


def _told(dataset: Any) -> Tensor | None:
    """The targets that the dataset tells without reading a sample, int64 (N,) or (N, T)."""
    if isinstance(dataset, Subset):
        of_all = _told(dataset.dataset)
        return None if of_all is None else of_all[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [_told(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        same = len(known) == len(parts) and len({part.shape[1:] for part in known}) == 1
        return torch.cat(known) if same else None
    if type(dataset) is TensorDataset:
        found: Any = dataset.tensors[-1]
    else:
        found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        targets = torch.as_tensor(found).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    broken = targets.is_floating_point() or targets.is_complex()
    if broken or targets.dim() not in (1, 2) or len(targets) != len(dataset):
        return None
    return targets.long()


def class_names(dataset: Any) -> Sequence[str]:
    """The names that the dataset has for its classes; () for none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return f"a {type(value).__name__}"

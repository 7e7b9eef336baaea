"""The network of a run: by a name of ours, by a reference, or what Python was given."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ... import checks, models
from ...copies import copied
from ...data.drawing import drawing_from
from . import reference

Model = Callable[..., nn.Module] | nn.Module
#: libraries' models take these words for sizes: required, and where the model takes it
_WORDS = {
    "timm": ({"num_classes": "num_classes", "in_channels": "in_chans"}, "img_size"),
    "torchvision": ({"num_classes": "num_classes"}, "image_size"),
}


def check(name: str, *, zero_init_residual: bool) -> None:
    """What a configuration may say of its model; ValueError or TypeError for anything else."""
    if not reference.is_reference(name):
        try:
            models.check(name, zero_init_residual=zero_init_residual)
        except ValueError as error:
            if isinstance(name, str) and name in models.names():
                raise
            own = "; a model of your own: package.module:function, file.py:function or timm:name"
            raise ValueError(f"{error}{own}") from None
        return
    reference.check("model", name, reference.LIBRARIES)
    if checks.boolean("zero_init_residual", zero_init_residual):
        raise ValueError(
            f"zero_init_residual: got True for {name!r}, which is no model of this package; let "
            f"the function that makes it do so"
        )


def recorded(value: object) -> str:
    """How a configuration writes down a model that was given; TypeError for what is none."""
    if not isinstance(value, nn.Module) and not callable(value):
        need = "a function or class that makes a torch.nn.Module, or a torch.nn.Module"
        hint = "names and references belong into TrainConfig(model=...)"
        checks.refuse("model", value, need, hint if isinstance(value, str) else "")
    return reference.text_of(value)


def build(
    name: str, value: Model | None, sizes: Mapping[str, int], *, seed: int, **options: Any
) -> nn.Module:
    """The network, freshly initialised from `seed`; of a module that was given, a copy on the CPU.

    name, value   the configuration's model, and what was given for it, if anything
    options       of `models.get`
    """
    torch.manual_seed(seed)
    if value is None and not reference.is_reference(name):
        return models.get(name, **sizes, **options)
    if isinstance(value, nn.Module):
        found: object = copied(value).to("cpu")
        found.zero_grad(set_to_none=True)  # type: ignore[attr-defined]
    elif value is None and reference.is_given(name):
        raise ValueError(
            f"model: the configuration says {name!r}, a value of Python; give it again: "
            f"train(config, model=...); to qtrain inspect and the like, --model file.py:function"
        )
    elif value is None and name.partition(":")[0] in reference.LIBRARIES:
        found = _of_library(name, sizes, seed)
    else:
        function = value or reference.resolved("model", name)
        with drawing_from(seed):
            found = reference.called("model", name, function, sizes)
    if not isinstance(found, nn.Module):
        kind = type(found).__name__
        raise ValueError(f"model: {name!r} returned a {kind}, need a torch.nn.Module")
    return found.train()


def _of_library(text: str, sizes: Mapping[str, int], seed: int) -> object:
    library, _, name = text.partition(":")
    try:
        module = importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"model: got {text!r}, but {library} is not installed; pip install {library}"
        ) from error
    known = module.list_models() if library == "timm" else module.models.list_models()
    if name.partition(".")[0] not in known and not name.startswith(("hf-hub:", "hf_hub:")):
        listed = "timm" if library == "timm" else "torchvision.models"
        raise ValueError(
            f"model: got {text!r}, need one of the {len(known)} names of {listed}.list_models()"
            f"{checks.suggestion(name, known)}"
        )
    make = module.create_model if library == "timm" else module.models.get_model
    words, size = _WORDS[library]
    given = {word: sizes[what] for what, word in words.items() if what in sizes}
    if library == "torchvision" and sizes.get("in_channels", 3) != 3:
        raise ValueError(
            f"model: got {text!r}, which takes images of 3 channels, but the data's have "
            f"{sizes['in_channels']}; timm's models take any, timm:{name}"
        )
    if "image_size" in sizes:
        given[size] = sizes["image_size"]
    try:
        try:
            return make(name, **given)
        except TypeError as error:  # of a model that has no size
            if size not in given or size not in str(error):
                raise
        del given[size]
        torch.manual_seed(seed)  # of which the first try may have drawn
        return make(name, **given)
    except (AssertionError, ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        told = ", ".join(f"{word}={value}" for word, value in given.items())
        raise ValueError(
            f"model: {text!r} cannot be made with {told}: {type(error).__name__}: {error}"
        ) from error

"""Loggers by the words of `--log`; the packages of others are imported when a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ... import checks
from .logger import Logger
from .tensorboard import TensorBoard
from .weights_and_biases import WeightsAndBiases

#: word, which is also the package and the extra of qtrain -> its logger
LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check(words: Any) -> None:
    """Of a configuration's `log`: TypeError or ValueError for what is no tuple of words."""
    checks.instance("log", words, tuple, 'a tuple such as ("tensorboard",)')
    for word in words:
        checks.choice("log", word, LOGGERS)
    if len(set(words)) < len(words):
        raise ValueError(f"log: got {words}, need each once")


def made(words: Sequence[str], given: Sequence[Logger] = ()) -> list[Logger]:
    """The loggers of these words, and those given.

    ValueError where a word's package is not installed, TypeError for what is no Logger.
    """
    for word in words:
        try:
            import_module(word)
        except ImportError as error:
            raise ValueError(
                f"log: the package {word} cannot be imported ({error}); pip install "
                f"'qtrain[{word}]', or leave it out"
            ) from error
    own = list(checks.iterable("loggers", given, "a list of Loggers"))
    for logger in own:
        if isinstance(logger, type) or not isinstance(logger, Logger):
            checks.refuse("loggers", logger, "a Logger", "subclass qtrain.Logger, with log(line)")
    return [*(LOGGERS[word]() for word in words), *own]

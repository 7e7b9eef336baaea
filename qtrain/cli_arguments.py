"""The shell's arguments, those of `qtrain train` made from TrainConfig's fields."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Container
from dataclasses import Field, fields
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from . import data, models
from .files.terminal import printable
from .training.config import TrainConfig, default_of
from .version import VERSION
from .weights.updates.named import NAMED

_OVERRIDE = (
    "; recipes of single layers are given in Python, quantize(model, overrides={pattern: recipe}); "
    "qtrain train has one for all, and those it switches to (--switch)"
)
#: what there is instead of a flag that somebody looks for
_INSTEAD = {
    "--recipe": "; a recipe, or its file, comes first: qtrain train mine.yaml",
    "--override": _OVERRIDE,
    "--overrides": _OVERRIDE,
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest flag where one is unknown."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        self.exit(2, printable(f"{self.prog}: error: {message}\n"))

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """As argparse, but an unknown argument is answered with the nearest flag it could be."""
        parsed, unknown = super().parse_known_args(*args, **options)
        if unknown:
            known = self._option_string_actions  # of this sub-command alone
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1, cutoff=0.7)
            hint = f"; did you mean {near[0]}?" if near else ""
            hint = _INSTEAD.get(unknown[0].split("=")[0], hint)
            if not unknown[0].startswith("-"):
                hint = _placed(unknown[0], known)
            self.error(f"unknown argument {unknown[0]!r}{hint}")
        return parsed, unknown


def _placed(word: str, flags: Container[str]) -> str:
    """What a word without a flag before it may have been meant for."""
    if "--switch" not in flags:
        return "; there is one argument too many"
    known = {"--model": models.names(), "--data": data.names(), "--update": NAMED}
    for flag, names in known.items():
        if word in names:
            return f"; did you mean {flag} {word}?"
    return "; a run has one recipe, and those it switches to, --switch 0.9:bf16"


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="qtrain", description="Simulates low-precision training.")
    parser.add_argument("--version", action="version", version=f"qtrain {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    train = commands.add_parser(
        "train", help="train a quantized model beside full precision", description=_TRAIN
    )
    train.add_argument(
        "recipe", help="a named run or quantization recipe, see qtrain recipes, or its .yaml file"
    )
    kinds = get_type_hints(TrainConfig)
    for option in fields(TrainConfig):
        if option.name != "recipe":
            _add(train, option, kinds[option.name])
    many = commands.add_parser(
        "study", help="compare recipes over seeds, as a .yaml file says", description=_STUDY
    )
    many.add_argument("study", help="a .yaml file")
    many.add_argument("--seeds", type=int, metavar="N", help="in place of the file's")
    many.add_argument("--jobs", type=int, metavar="N", help="runs at a time, default: 1")
    many.add_argument("--executor", metavar="X", help="processes, ray or slurm, default: processes")
    many.add_argument("--budget", metavar="8m", help="start only runs that end within it")
    many.add_argument("--runs-dir", metavar="DIR", help="folder of the study's folder")
    look = commands.add_parser("inspect", help="numeric error of each layer of a checkpoint")
    count = commands.add_parser("cost", help="cost in hardware of each layer of a checkpoint")
    blame = commands.add_parser(
        "sensitivity", help="which part of a checkpoint is to blame for the error of its gradient"
    )
    widen = commands.add_parser(
        "recommend", help="what of a checkpoint to widen so that its gradient keeps its direction"
    )
    for reader in (look, count, blame, widen):
        reader.add_argument("checkpoint", help="runs/<name>/checkpoint.pt")
        reader.add_argument("--data-dir", help="folder of the data set, if it moved")
        reader.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
        reader.add_argument(
            "--save",
            metavar="FILE",
            help="write the rows to a .json or .csv too (errors: .html; a recipe: .yaml)",
        )
    page = commands.add_parser("report", help="a run as one HTML page")
    page.add_argument("run", help="runs/<name>, or a .jsonl file that a Monitor saved")
    page.add_argument("--save", metavar="FILE", help="the .html file (default: beside it)")
    page.add_argument("--tensorboard", metavar="DIR", help="write events for TensorBoard there too")
    for ranked in (look, blame):
        ranked.add_argument("--worst", type=int, metavar="N", help="print the N worst rows only")
    blame.add_argument("--by", default="product", help="layer, product (default) or role")
    widen.add_argument("--by", default="role", help="layer, product or role (default)")
    widen.add_argument("--to", metavar="X", help="bits or a recipe (default: full precision)")
    widen.add_argument("--each", action="store_true", help="in single layers, not in all alike")
    widen.add_argument("--cosine", type=float, default=0.99, metavar="X", help="(default 0.99)")
    look.add_argument(
        "--accumulated",
        action="store_true",
        help="against the full-precision network, not each layer's own operands",
    )
    look.add_argument("--plot", metavar="FILE", help="draw the SQNRs to a .png or .svg too")
    two = commands.add_parser("compare", help="what differs between two runs, from which step")
    two.add_argument("run_a", help="runs/<name>")
    two.add_argument("run_b", help="another runs/<name>")
    two.add_argument("--save", metavar="FILE", help="write all to a .json, or errors to a .csv")
    two.add_argument("--plot", metavar="FILE", help="draw losses and errors to a .png or .svg")
    judge = commands.add_parser("diagnose", help="what is wrong with a monitored run, and why")
    judge.add_argument("run", help="runs/<name>, or a .jsonl file that a Monitor saved")
    judge.add_argument("--save", metavar="FILE", help="write the findings to a .json or .csv too")
    judge.add_argument(
        "--gradient",
        action="store_true",
        help="measure its gradient's cosine too, on the checkpoint in runs/<name>",
    )
    commands.add_parser("doctor", help="what this machine computes with, for a report of a bug")
    known = commands.add_parser("recipes", help="list recipes, or show one in full")
    known.add_argument("recipe", nargs="?", help="a recipe's name or its .yaml file")
    known.add_argument("--save", metavar="FILE", help="write that recipe to a .yaml file, to edit")
    commands.add_parser("formats", help="list number formats")
    return parser


def train_settings(parsed: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given on the command line, recipe apart."""
    names = [option.name for option in fields(TrainConfig) if option.name != "recipe"]
    given = {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}
    return {k: tuple(value) if isinstance(value, list) else value for k, value in given.items()}


_DEFAULTS = {option.name: default_of(option) for option in fields(TrainConfig)}
_STUDY = (
    "Trains every recipe with every seed, goes on where it was, and writes runs/<name>/. The file "
    "holds the arguments of qtrain.study: model: resnet20, recipes: [fp32, int8], seeds: 5, and "
    "maybe data, config: {epochs: 20}, margin, primary, baseline, metric, rates, jobs, budget."
)
_TRAIN = (
    "Trains a quantized model side by side with full precision; writes runs/<name>/. With a recipe "
    "alone, as in qtrain train nvfp4, that is {model} on {data} (of this package: 1437 images of "
    "8 x 8 to learn from, 360 to be judged on), {epochs} epochs of {optimizer} in batches of "
    "{batch_size}; a named run sets its own, and qtrain recipes shows them."
).format_map(_DEFAULTS)


def _add(parser: argparse.ArgumentParser, option: Field[Any], kind: Any) -> None:
    default, text = default_of(option), option.metadata["help"]
    if default not in (None, ()):
        text += f" (default {default})"
    more: dict[str, Any] = {"type": _reader(kind), "metavar": "X"}
    if kind is bool:
        more = {"action": argparse.BooleanOptionalAction}
    elif get_origin(kind) is tuple:
        more = {"type": _reader(get_args(kind)[0]), "nargs": "+"}
    # SUPPRESS: a flag that is not given leaves the named run's own setting
    name = option.name.replace("_", "-")
    parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **more)


def _reader(kind: Any) -> Callable[[str], object]:
    """Reads a number where the field takes one; other text is left for TrainConfig to refuse."""
    accepted = get_args(kind) or (kind,)

    def read(text: str) -> object:
        for number in (int, float):
            if int in accepted or float in accepted:
                try:
                    return number(text)
                except ValueError:
                    continue
        return text

    return read

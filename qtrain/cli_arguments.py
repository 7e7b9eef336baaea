"""The shell's arguments: each command's flags, help and examples."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Container
from dataclasses import fields
from typing import Any, NoReturn

from . import checks, data, models
from .files.terminal import printable
from .training.config import TrainConfig, default_of
from .training.flags import add_flags
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
    "--learning-rate": "; did you mean --lr?",
    "--gpu": "; did you mean --device cuda?",
}


class _Help(argparse.HelpFormatter):
    """Wraps text, and leaves lines that are indented, examples, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        fill = super()._fill_text
        return "\n".join(x if x.startswith(" ") else fill(x, width, indent) for x in lines)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with what is nearest to a word that is unknown."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        self.exit(2, printable(f"{self.prog}: error: {message}\n"))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            try:
                checks.choice(action.dest, value, action.choices)
            except ValueError as error:
                self.error(str(error))

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
    text = "Simulates low-precision training: would this network still train, and if not, why?"
    parser = Parser(prog="qtrain", description=text, epilog=_BEGIN)
    parser.add_argument("--version", action="version", version=f"qtrain {VERSION}")
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=Parser, metavar="command"
    )

    def command(name: str, text: str, more: str = "") -> Parser:
        told = f"{text[0].upper()}{text[1:]}.{more}"
        examples = "examples:\n" + "\n".join(f"  qtrain {line}" for line in _EXAMPLES[name])
        return commands.add_parser(name, help=text, description=told, epilog=examples)

    train = command("train", "train a quantized model beside full precision", _TRAIN)
    train.usage = "qtrain train recipe [--model NAME] [--data NAME] [--epochs N] [other flags]"
    train.add_argument(
        "recipe", help="a named run or quantization recipe, see qtrain recipes, or its .yaml file"
    )
    add_flags(train)
    shown = command("demo", "see int4 break and be mended: four short runs and a page", _DEMO)
    shown.add_argument("--seed", type=int, metavar="N", help="of the runs, default: 0")
    shown.add_argument("--runs-dir", metavar="DIR", help="folder of the folder demo, default: runs")
    shown.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    many = command("study", "compare recipes over seeds, as a .yaml file says", _STUDY)
    many.add_argument("study", help="a .yaml file")
    many.add_argument("--seeds", type=int, metavar="N", help="in place of the file's")
    many.add_argument("--jobs", type=int, metavar="N", help="runs at a time, default: 1")
    many.add_argument("--executor", metavar="X", help="processes, ray or slurm, default: processes")
    many.add_argument("--budget", metavar="8m", help="start only runs that end within it")
    many.add_argument("--runs-dir", metavar="DIR", help="folder of the study's folder")
    page = command("report", "write a run as one HTML page; of a study, say where it is")
    page.add_argument("run", help="runs/<name>, or a .jsonl file that a Monitor saved")
    page.add_argument("--save", metavar="FILE", help="the .html file (default: beside it)")
    page.add_argument("--tensorboard", metavar="DIR", help="write events for TensorBoard there too")
    judge = command("diagnose", "say what is wrong with a monitored run, and why")
    judge.add_argument("run", help="runs/<name>, or a .jsonl file that a Monitor saved")
    judge.add_argument("--save", metavar="FILE", help="write the findings to a .json or .csv too")
    judge.add_argument(
        "--gradient",
        action="store_true",
        help="measure its gradient's cosine too, on the checkpoint in runs/<name>",
    )
    two = command("compare", "say what differs between two runs, from which step")
    two.add_argument("run_a", help="runs/<name>")
    two.add_argument("run_b", help="another runs/<name>")
    two.add_argument("--save", metavar="FILE", help="write all to a .json, or errors to a .csv")
    two.add_argument("--plot", metavar="FILE", help="draw losses and errors to a .png or .svg")
    look = command("inspect", "measure the numeric error of each layer of a checkpoint")
    blame = command(
        "sensitivity", "find which part of a checkpoint is to blame for its gradient's error"
    )
    widen = command(
        "recommend", "say what of a checkpoint to widen so that its gradient keeps its direction"
    )
    count = command("cost", "estimate the cost in hardware of each layer of a checkpoint")
    for reader in (look, count, blame, widen):
        reader.add_argument("checkpoint", help="runs/<name>, or its checkpoint.pt")
        reader.add_argument(
            "--save",
            metavar="FILE",
            help="write the rows to a .json or .csv too (errors: .html; a recipe: .yaml)",
        )
    for ranked in (look, blame):
        ranked.add_argument("--worst", type=int, metavar="N", help="print the N worst rows only")
    parts = ("layer", "product", "role")
    blame.add_argument("--by", choices=parts, default="product", help="parts (default product)")
    widen.add_argument("--by", choices=parts, default="role", help="parts (default role)")
    widen.add_argument("--to", metavar="X", help="bits or a recipe (default: full precision)")
    widen.add_argument("--each", action="store_true", help="in single layers, not in all alike")
    widen.add_argument("--cosine", type=float, default=0.99, metavar="X", help="(default 0.99)")
    look.add_argument(
        "--accumulated",
        action="store_true",
        help="against the full-precision network, not each layer's own operands",
    )
    look.add_argument("--plot", metavar="FILE", help="draw the SQNRs to a .png or .svg too")
    for reader in (look, count, blame, widen, judge):
        _add_source(reader)
    command("doctor", "say what this machine computes with, for a report of a bug")
    known = command("recipes", "list recipes, or show one in full")
    known.add_argument("recipe", nargs="?", help="a recipe's name or its .yaml file")
    known.add_argument("--save", metavar="FILE", help="write that recipe to a .yaml file, to edit")
    command("formats", "list number formats")
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Flags of what a checkpoint is read with."""
    own = parser.add_argument_group("model and data, where they are not those the run says")
    say = "in place of the run's own, of a value given in Python: file.py:function, or a name"
    own.add_argument("--model", metavar="NAME", help=say)
    own.add_argument("--data", metavar="NAME", help=say)
    own.add_argument("--data-dir", metavar="DIR", help="folder of the data set, if it moved")
    own.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")


_RUN = "runs/int8-resnet18-digits-seed0"
_BEGIN = f"""where to begin:
  qtrain doctor                  what this machine computes with
  qtrain train int8-resnet18     a first run, minutes on two CPU cores; its data comes along
  qtrain demo                    full precision, int8, int4, and int4 mended: one page
  qtrain report {_RUN}    that run as one page

Flags and examples of a command: qtrain command --help"""
#: lines of each command that can be run
_EXAMPLES = {
    "train": (
        "train int8-resnet18",
        "train mxfp8 --model mlp --epochs 4 --monitor 20",
        "train banner2018 --model resnet20 --data cifar10 --data-dir PATH --bits 6",
        "train int8 --model timm:resnet18 --switch 0.9:bf16 --resume",
    ),
    "demo": ("demo", "demo --seed 1 --threads 1"),
    "study": ("study mine.yaml", "study mine.yaml --seeds 5 --jobs 2 --budget 30m"),
    "report": (f"report {_RUN}", "report monitor.jsonl --save page.html"),
    "diagnose": (f"diagnose {_RUN}", f"diagnose {_RUN} --gradient"),
    "compare": ("compare runs/A runs/B --plot both.svg",),
    "inspect": (
        f"inspect {_RUN}/checkpoint.pt --worst 10",
        "inspect runs/mine/checkpoint.pt --model net.py:make --data net.py:load",
    ),
    "sensitivity": (f"sensitivity {_RUN}/checkpoint.pt --by layer",),
    "recommend": (f"recommend {_RUN}/checkpoint.pt --by role --to 8 --save wider.yaml",),
    "cost": (f"cost {_RUN}/checkpoint.pt --save cost.csv",),
    "doctor": ("doctor",),
    "recipes": ("recipes", "recipes mxfp8", "recipes mxfp8 --save mine.yaml"),
    "formats": ("formats",),
}
_DEFAULTS = {option.name: default_of(option) for option in fields(TrainConfig)}
_DEMO = (
    " Trains a deep MLP on digits in full precision, int8 and int4, asks diagnose and recommend "
    "what ails int4, trains it as they say, and writes runs/demo/demo.html. Goes on where it was."
)
_STUDY = (
    " Trains every recipe with every seed, goes on where it was, and writes runs/<name>/. The file "
    "holds the arguments of qtrain.study: model: resnet20, recipes: [fp32, int8], seeds: 5, and "
    "maybe data, config: {epochs: 20}, margin, primary, baseline, metric, rates, jobs, budget. The "
    "exit status is 1 where an error ended a run; one that diverges, or is left to another call by "
    "the budget, is no failure."
)
_TRAIN = (
    " Writes runs/<name>/. With a recipe alone, as in qtrain train nvfp4, that is {model} on "
    "{data} (of this package: 1437 images of 8 x 8 to learn from, 360 to be judged on), {epochs} "
    "epochs of {optimizer} in batches of {batch_size}; a named run sets its own, and qtrain "
    "recipes shows them."
).format_map(_DEFAULTS)

"""Steps of training, whose products by functions are their modules', bit for bit.

    python -m experiments.coverage.steps timm [--only PART]
    python -m experiments.coverage.steps transformers

One model of each of timm's files, its smallest, and the architectures of transformers at small
sizes, under `quantize(model, bits=8, norm="range")`: a step of SGD on a batch, and a forward in
evaluation, beside a twin (`twins.py`); then a step with nearest rounding, beside new modules in
every call.  Needs timm or transformers, which the project does not.  Writes
results/steps-<library>.json after each model, goes on where it stopped, and writes
results/steps-<library>.md at the end.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.coverage.architectures import TRANSFORMERS
from experiments.coverage.twins import compared
from qtrain import Recipe, environment, recipes
from qtrain.files.whole import write_atomically
from qtrain.reports.progress import Progress

RESULTS = Path(__file__).parent / "results"
#: no model is given more
SECONDS = 40

_SMALL = {
    "vocab_size": 99, "hidden_size": 32, "n_embd": 32, "d_model": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "num_attention_heads": 4, "n_head": 4,
    "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "d_ff": 48, "ffn_dim": 48,
    "word_embed_proj_dim": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "num_mel_bins": 8, "max_source_positions": 20, "image_size": 32, "patch_size": 8,
    "num_local_experts": 4, "state_size": 4, "projection_dim": 16, "pad_token_id": 0,
    "conv_dim": (16, 16), "conv_kernel": (5, 3), "conv_stride": (3, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "max_position_embeddings": 40,
    "eos_token_id": 2, "bos_token_id": 1, "decoder_start_token_id": 1, "max_target_positions": 20,
}  # fmt: skip
_SIZES = {
    "input_ids": (7,), "decoder_input_ids": (5,), "input_features": (8, 40),
    "pixel_values": (3, 32, 32), "input_values": (400,),
}  # fmt: skip

#: the words for a model's size, the smallest first
_WORDS = (
    "test", "atto", "femto", "pico", "nano", "xxt", "xxs", "xx_small", "micro", "mini", "p", "t",
    "tiny", "xt", "xs", "xsmall", "x_small", "s0", "s1", "s", "small", "b0", "a0", "xxsmall", "18",
    "lite0", "10", "12", "14", "26ts", "m0", "nf", "1", "002", "b1", "base",
)  # fmt: skip
#: what makes a model of one kind or another narrow and shallow
_NARROW: tuple[dict[str, Any], ...] = (
    {"depth": 2, "embed_dim": 48, "num_heads": 4},
    {"depths": (1, 1, 1, 1), "embed_dim": 16},
    {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)},
    {"depths": (1, 1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {"depth": 2},
    {},
)


def nearest() -> Recipe:
    """int8 without noise."""
    own = recipes.int8(8)
    quantizer = replace(own.grad_input.grad_output, rounding=own.forward.input.rounding)
    return replace(
        own, name="int8, nearest", grad_input=replace(own.grad_input, grad_output=quantizer)
    )


def of_transformers(name: str, attention: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """An architecture, small, and its inputs by name."""
    import transformers  # type: ignore[import-not-found]

    config, model, more, shapes = TRANSFORMERS[name]
    kind = getattr(transformers, config)
    known = set(vars(kind())) | set(getattr(kind, "attribute_map", {}))
    small = {key: value for key, value in _SMALL.items() if key in known}
    if name == "Mamba":
        del small["conv_kernel"]
    if name == "CLIP":
        parts = transformers.CLIPTextConfig, transformers.CLIPVisionConfig
        for key, part in zip(("text_config", "vision_config"), parts, strict=True):
            small[key] = {k: v for k, v in _SMALL.items() if k in vars(part())}
    torch.manual_seed(0)
    net = getattr(transformers, model)(kind(**{**small, **more, "attn_implementation": attention}))
    return net, {
        key: torch.randint(3, 99, (2, *_SIZES[key])) if key.endswith("ids")
        else torch.randn(2, *_SIZES[key])
        for key in shapes
    }  # fmt: skip


def smallest(file: str) -> str:
    """A model of a file of timm's, by the word for its size."""
    import timm  # type: ignore[import-not-found]

    def rank(name: str) -> tuple[int, int, str]:
        found = (i for i, word in enumerate(_WORDS) if re.search(rf"(^|_){word}(_|\d|$)", name))
        return next(found, len(_WORDS)), len(name), name

    return min(timm.list_models(module=file), key=rank)


def of_timm(name: str, batch: int = 2) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model, as narrow and shallow as it can be asked to be, on the smallest image that it takes
    in training."""
    import timm

    failed: Exception | None = None
    for given in _NARROW:
        for size in (64, 96, 128, None):
            for own in ({"img_size": size}, {}) if size else ({},):
                try:
                    torch.manual_seed(0)
                    net = timm.create_model(name, num_classes=10, **given, **own)
                    channels, usual, _ = net.default_cfg.get("input_size", (3, 224, 224))
                    inputs = {"x": torch.randn(batch, channels, size or usual, size or usual)}
                    net(**inputs)
                    return net, inputs
                except Exception as error:  # no such setting, or not of this size
                    failed = error
    assert failed is not None
    raise failed


class TooLong(BaseException):
    """A model took more than SECONDS of one core."""


@contextmanager
def bounded() -> Iterator[None]:
    """TooLong after SECONDS of this process's time."""

    def stop(*_: Any) -> None:
        raise TooLong(f"over {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measured(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """What differs from the twins, by name."""
    start, norm, asking = time.process_time(), "range", True
    while True:
        try:
            noisy = compared(model, inputs, recipe=recipes.int8(8), norm=norm, asking=asking)
            break
        except ValueError as error:
            if norm is None or "norm: got" not in str(error):
                raise
            norm = None
        except RuntimeError as error:  # it asks itself, or writes to its input
            if not asking or "leaf" not in str(error):
                raise
            asking = False
    fresh = compared(model, inputs, recipe=nearest(), norm=norm, same_noise=False)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "inputs": {name: list(x.shape) for name, x in inputs.items()},
        "calls": noisy.calls,
        "tensors": noisy.tensors + fresh.tensors,
        "differ": noisy.differ + [f"nearest, {name}" for name in fresh.differ],
        "infinite": noisy.infinite + [f"nearest, {name}" for name in fresh.infinite],
        "seconds": round(time.process_time() - start, 1),
    }


def table(library: str, rows: dict[str, Any]) -> str:
    """A sentence, and a row for each model that is not equal."""
    ran = {name: row for name, row in rows.items() if "calls" in row}
    equal = [row for row in ran.values() if not row["differ"] and not row["infinite"]]
    calling = [row for row in ran.values() if row["calls"]]
    lines = [
        f"**{library}: {len(equal)} of {len(ran)} models equal their twins in every bit** of "
        f"{sum(row['tensors'] for row in ran.values())} outputs, gradients and weights, and are "
        f"finite; {len(calling)} of them have products of functions, "
        f"{sum(row['calls'] for row in ran.values())} calls a forward.",
    ]
    odd = {name: row for name, row in rows.items() if row not in equal}
    if odd:
        lines += ["", "| model | what |", "|-|-|"]
    for name, row in odd.items():
        parts = (
            [f"differ: {len(row['differ'])}, as {row['differ'][0]}"] if row.get("differ") else []
        )
        parts += [f"not finite: {', '.join(row['infinite'][:3])}"] if row.get("infinite") else []
        lines.append(f"| {name} | {row.get('error') or '; '.join(parts)} |")
    return "\n".join(lines) + "\n"


def _row(library: str, one: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    try:
        with bounded():
            if library == "timm":
                row["model"] = smallest(one)
                made = of_timm(row["model"])
            else:
                made = of_transformers(*one.split(", "))
        with bounded():
            row |= measured(*made)
    except (TooLong, Exception) as error:  # a row that says so
        row["error"] = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]:.160}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=["timm", "transformers"])
    parser.add_argument("--only", default="", help="models in whose name this is, again")
    given = parser.parse_args()
    library = import_module(given.library)
    if given.library == "timm":
        every = [file for file in library.list_modules() if library.list_models(module=file)]
    else:
        every = [f"{name}, {kind}" for name in TRANSFORMERS for kind in ("sdpa", "eager")]
        every.remove("Mamba, sdpa")  # it has no attention
    path = RESULTS / f"steps-{given.library}.json"
    rows: dict[str, Any] = json.loads(path.read_text())["models"] if path.exists() else {}
    bar = Progress(len(every), done=0, text=f"{given.library}'s models")
    for one in every:
        if one not in rows or (given.only and given.only in one):
            rows[one] = _row(given.library, one)
            result = {
                "library": library.__version__,
                "environment": environment(torch.device("cpu")),
                "models": rows,
            }
            text = json.dumps(result, indent=1) + "\n"
            write_atomically(path, lambda file, text=text: file.write(text.encode()))
        bar.step()
    bar.close()
    text = table(given.library, {one: rows[one] for one in every})
    (RESULTS / f"steps-{given.library}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""demo: full precision, int8, int4, and int4 with what `recommend` said of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import data, models
from ...data import DataSet
from ...diagnosis.diagnose import diagnose
from ...diagnosis.recommend import recommend
from ...diagnosis.recommendation import Recommendation
from ...diagnosis.sensitivity import sensitivity
from ...files import terminal
from ...recipe import Recipe
from ..config import TrainConfig
from ..intervals import accuracy_gap
from ..results import Result
from ..train import restored, train
from .story import Story, save_page

#: The layers between the first and the last of `network`.
DEPTH = 12
#: The cosine of the gradient that is asked for.
GOAL = 0.7


def network(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Linear layers of 64 with ReLU between, no norm and no skip connection: errors pile up from
    layer to layer."""
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return models.mlp(**sizes, hidden=(64,) * DEPTH)


def demo(
    *,
    seed: int = 0,
    epochs: int = 12,
    runs_dir: str = "runs",
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Story:
    """Train a deep MLP on digits in full precision, in int8 and in int4; ask `diagnose` and
    `recommend` what ails the int4 run; train it as they say; write demo.html.

    seed      of the runs: initial weights, order of data, rounding noise
    epochs    of each run
    runs_dir  holds the folder demo (demo-seed<k> for another seed), which holds the runs; the same
              call goes on where it was stopped
    threads   of the CPU; None: torch's own choice
    say       takes lines of progress (default: stderr)

    ValueError for what cannot run, Interrupted after Ctrl-C.
    """
    report = say or terminal.say
    name = "demo" if seed == 0 else f"demo-seed{seed}"
    settings: dict[str, Any] = {
        "model": f"{__name__}:network", "epochs": epochs, "lr": 0.01, "seed": seed,
        "threads": threads, "device": "cpu", "baseline": False, "resume": True,
        "runs_dir": str(Path(runs_dir) / name),
    }  # fmt: skip
    dataset = data.load("digits")

    def run(arm: str, recipe: str | Recipe, bits: int | None = None) -> Result:
        report(f"{arm}:")
        monitor = None if recipe == "fp32" else 10
        own = TrainConfig(recipe=recipe, bits=bits, name=arm, monitor=monitor, **settings)
        return train(own, say=partial(_resuming, report))

    results = {
        "full precision": run("full precision", "fp32"),
        "int8": run("int8", "int8"),
        "int4": run("int4", "int8", 4),
    }
    place = results["int4"].folder.path
    report("int4: diagnose and recommend")
    verdict, found = diagnose(place), _recommended(place / "checkpoint.pt")
    if found is not None and found.widened and found.recipe is not None:
        results["int4 mended"] = run("int4 mended", found.recipe)
    correct = {arm: _correct(one.models["quantized"], dataset) for arm, one in results.items()}
    full, low = correct["full precision"], correct["int4"]
    story = Story(
        results=results,
        verdict=verdict,
        found=found,
        gaps={arm: accuracy_gap(full, own) for arm, own in correct.items()},
        gain=accuracy_gap(low, correct["int4 mended"]) if "int4 mended" in correct else None,
        path=place.parent / "demo.html",
    )
    save_page(story)
    return story


def _resuming(report: Callable[[str], None], text: str) -> None:
    """A run's remarks, but that of one which begins."""
    if "no checkpoint to resume from" not in text:
        report(text)


def _recommended(checkpoint: Path) -> Recommendation | None:
    """The operands that get 8 bits in all layers, so that the gradient keeps its direction to a
    cosine of GOAL; None where 8 bits are not enough for that."""
    with restored(checkpoint) as (model, inputs, targets):
        batch: dict[str, Any] = {"inputs": inputs, "targets": targets}
        blame = sensitivity(model, **batch, by="role")
        try:
            return recommend(blame, GOAL, by="role", to=8, model=model, **batch)
        except ValueError:
            return None


@torch.no_grad()
def _correct(model: nn.Module, dataset: DataSet) -> Tensor:
    """Which test images are met, bool (N,)."""
    model.eval()
    batches = data.Batches(split=dataset.test, batch_size=256, train=False)
    return torch.cat([model(images).argmax(1) == labels for images, labels in batches])

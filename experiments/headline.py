"""The table of the README: what was measured, from the files of results.

python -m experiments.headline
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from experiments.confirm.claims import CLAIMS
from experiments.confirm.results import stored
from experiments.confirm.table import comparisons, means
from experiments.readme import insert

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
HEADERS = "what", "full precision", "in few bits", "difference or ratio", "machine"
_DIGITS = {
    "D1": "ResNet-20, digits, 6 epochs: int8",
    "D2": "the same with range batch-norm",
}
_STEPS = {
    ("resnet18", 128, "int8"): "a step of ResNet-18, 32 pixels, batch 128: int8",
    ("resnet18", 128, "int8 range-norm"): "the same with range batch-norm",
    ("resnet50", 64, "int8"): "a step of ResNet-50, 224 pixels, batch 64: int8",
    ("transformer-block-1024", 8, "int8"): "a step of a Transformer block, 8 x 1,024 tokens: int8",
}


def text() -> str:
    """The table as markdown."""
    rows = [*_accuracies(), _cpu(), *_gpu()]
    return tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True)


def _accuracies() -> list[list[str]]:
    found, lines = comparisons(), []
    machine = stored("digits")[0].machine.partition(", device")[0].removeprefix("processor ")
    for claim in CLAIMS:
        if claim.name in _DIGITS:
            own, other = means(claim)
            gap = found[claim.name].interval
            d = f" [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}] points"
            lines.append([
                _DIGITS[claim.name], f"{other:.2f} %", f"{own:.2f} %, n = {gap.n}",
                f"{100 * gap.value:+.2f}{d}: {found[claim.name].verdict}", machine,
            ])  # fmt: skip
    return lines


def _cpu() -> list[str]:
    found = _read("speed/results/resnet18-three-rows.json")
    (row,) = (r for r in found["tables"][0]["rows"] if r["method"] == "int8 range-norm")
    base, own = found["tables"][0]["baseline_seconds"], row["seconds"][1]
    low, middle, high = row["ratio"]
    return [
        "a step of ResNet-18, 32 pixels, batch 64, range batch-norm: int8", f"{base:.2f} s",
        f"{own:.2f} s", f"{middle:.2f} [{low:.2f}, {high:.2f}]",
        f"{found['environment']['processor']}, {found['environment']['cores']} cores, AVX512-VNNI",
    ]  # fmt: skip


def _gpu() -> list[list[str]]:
    found = _read("gpu/results/gpu.json")
    lines = []
    for (network, batch, method), what in _STEPS.items():
        (step,) = (s for s in found["steps"] if (s["network"], s["batch"]) == (network, batch))
        captured = {r["method"]: r for r in step["rows"] if r["mode"] == "captured"}
        base, own = (captured[name]["ms"][1] for name in ("TF32", method))
        ratio = f"{captured[method]['ratio']:.2f}"
        device = found["environment"]["device"]
        lines.append([what, f"{base:.1f} ms (TF32)", f"{own:.1f} ms", ratio, device])
    return lines


def _read(path: str) -> Any:
    return json.loads((HERE / path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    insert(text(), README)

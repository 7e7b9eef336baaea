"""The share of real models' multiply-adds that `quantize(model, bits=8, norm="range")` simulates.

    python -m experiments.coverage.run timm [--each 2]
    python -m experiments.coverage.run transformers

Models of timm (each of its files) and of transformers (default configurations), at their real
sizes, on the meta device, where nothing is computed.  Needs timm or transformers, which the project
does not.  Writes results/<library>.json after each model, goes on where it stopped, and writes
results/<library>.md at the end.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections import Counter
from typing import Any

from experiments.coverage.architectures import Made, of_timm, of_transformers
from experiments.coverage.rows import Row, collect, said
from qtrain import quantize_, summary


def measured(make: Made, batch: int = 1) -> dict[str, Any]:
    """One model: its share, and the types of the modules of what is left, in % of all."""
    model, inputs = make(batch)
    size = sum(p.numel() for p in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quantize_(model, bits=8, norm="range")
        except ValueError as error:
            if "norm" not in str(error):
                raise
            quantize_(model, bits=8)  # it has no norm
        try:
            found = summary(model, **inputs)
        except ValueError as error:
            if batch > 1 or "more than 1 value per channel" not in str(error):
                raise
            return measured(make, 2)  # a batch-norm of a single pixel
    assert found.share is not None
    total = found.share.simulated + found.share.left.total()
    kinds: Counter[str] = Counter()
    for path, macs in found.share.left.items():
        kinds[found.types[path]] += macs
    classes = [[cls.__name__ for cls in type(module).__mro__] for module in model.modules()]
    norms = sum("QNorm" in names for names in classes)
    return {
        "parameters": size,
        "multiply_adds": total / batch,
        "share": found.share.value,
        "left": {kind: macs / total for kind, macs in kinds.most_common() if macs},
        "constant": sorted({op for ops in (found.constant or {}).values() for op in ops}),
        "uncounted": sorted(found.share.uncounted),
        "norms": norms,
        "norms_left": len(found.conversion.norms_left),
    }


def table(library: str, rows: dict[str, Any]) -> str:
    """The shares in a sentence, and a row for each model that is not whole."""
    shares = [row["share"] for row in rows.values() if "share" in row]
    norms = sum(row.get("norms", 0) for row in rows.values())
    left = sum(row.get("norms_left", 0) for row in rows.values())
    whole = sum(share > 0.9999 for share in shares)
    lines = [
        f"**{library}: of {len(shares)} models, {whole} are simulated whole; median share "
        f"{100 * statistics.median(shares):.1f} %, lowest {100 * min(shares):.1f} %.** "
        f'{norms} norms follow `norm="range"`, {left} do not.',
        "",
        "| model | share, % | not simulated, % of all multiply-adds |",
        "|-|-|-|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1].get("share", -1)):
        if "error" in row:
            lines.append(f"| {name} | | {row['error']} |")
        elif row["share"] <= 0.9999 or row["uncounted"]:
            parts = [f"{kind} {100 * part:.2g}" for kind, part in row["left"].items()]
            parts += [f"not counted: {', '.join(row['uncounted'])}"] if row["uncounted"] else []
            lines.append(f"| {name} | {100 * row['share']:.2f} | {'; '.join(parts[:4])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=["timm", "transformers"])
    parser.add_argument("--each", type=int, default=2, help="models of each of timm's files")
    given = parser.parse_args()
    models = of_timm(given.each) if given.library == "timm" else of_transformers()

    def row(name: str) -> Row:
        try:
            return measured(models[name])
        except Exception as error:  # a row that says so
            return {"error": said(error)}

    collect(given.library, given.library, list(models), row, table)


if __name__ == "__main__":
    main()

"""Break each contract by one line in a copy of the tree; its named tests must fail.

python tests/break_contracts.py            # about 5 minutes; exit status 1 if a break survives
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from bare_pytest import bare_pytest
from tabulate import tabulate

ROOT = Path(__file__).parents[1]

#: contract, file, line as it is, line that breaks it
BREAKS: list[tuple[int, str, str, str]] = [
    (
        1,
        "qtrain/products/blocks.py",
        "    device = a.elements.device.type\n",
        "    device = a.elements.device.type\n"
        "    a, b = (QTensor(q.dequantize(), block=q.block) for q in (a, b))\n",
    ),
    (2, "qtrain/products/engines/float_units.py", "return min(2**24 //", "return min(2**27 //"),
    (
        2,
        "qtrain/products/blocks.py",
        "        found.append(own.float())",
        "        found.append(1 / (1 / own.float()))",
    ),
    (3, "qtrain/products/engines/choice.py", "and engine.admitted_on(device_type):", "and True:"),
    (4, "qtrain/products/function.py", "        if _off(xq, wq):\n", "        if False:\n"),
    (4, "qtrain/layers/linear.py", "if self.product.recipe.products_off:", "if False:"),
    (
        5,
        "qtrain/autograd/recomputation.py",
        "own = fold(key, count, advance=True)",
        "own = fold(key, count)",
    ),
    (
        5,
        "qtrain/products/call.py",
        "key = fold(key, number if common else number + len(SLOTS) * (rank() + 1))",
        "key = fold(key, number)",
    ),
    (
        5,
        "qtrain/autograd/recomputation.py",
        "    if before is not None:\n        own",
        "    if False:\n        own",
    ),
    (
        6,
        "qtrain/layer_state.py",
        "self.register_buffer(name, value.to(device))",
        "self.register_buffer(name, value.to(device), persistent=False)",
    ),
    (
        7,
        "quantizers/scales/rules.py",
        "    if fmt in (fp32,):\n",
        "    found = torch.where(found == 0, 1.0, found)\n    if fmt in (fp32,):\n",
    ),
    (
        7,
        "quantizers/kernels/compiled_whole.py",
        "    scale = f32(width / c[_LARGEST])\n",
        "    scale = f32(f32(width + f32(1.0)) / c[_LARGEST])\n",
    ),
    (
        8,
        "quantizers/devices/by_device.py",
        "        form = forms.get(x.device.type)\n",
        "        float(x.sum())\n        form = forms.get(x.device.type)\n",
    ),
    (9, "qtrain/conversion/quantize.py", "    choose.check_all_used()\n", ""),
    (9, "qtrain/conversion/watch.py", "        if lines:\n", "        if False:\n"),
    (
        10,
        "qtrain/layer_state.py",
        "            state_dict[prefix + name] = buffer.detach().clone()\n",
        "            pass\n",
    ),
]  # fmt: skip


def main() -> int:
    rows = []
    for contract, file, line, broken in BREAKS:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder)
            for part in ("qtrain", "quantizers", "tests", "pyproject.toml"):
                source = ROOT / part
                copy = shutil.copytree if source.is_dir() else shutil.copy
                copy(source, tree / part)
            text = (tree / file).read_text(encoding="utf-8")
            if line not in text:
                raise SystemExit(f"{file} no longer holds {line!r}: update BREAKS")
            (tree / file).write_text(text.replace(line, broken), encoding="utf-8")
            run = bare_pytest(
                "--every-case", "--tb=no", "tests/qtrain/test_contracts.py",
                "-k", f"contract_{contract}_",
                environment={"PYTHONPATH": str(tree)}, cwd=tree,
            )  # fmt: skip
            failed = [
                part.split("::")[1].split(" ")[0].split("[")[0]
                for part in run.stdout.splitlines()
                if part.startswith("FAILED")
            ]
            names = sorted(set(failed))
            shown = names[0] if names else ("(error)" if run.returncode > 1 else "(survived)")
            rows.append([contract, file, f"{len(failed)} failed", shown])
            print(*rows[-1], flush=True)
    print(tabulate(rows, ["contract", "broken file", "tests", "for example"]))
    return int(any(row[3] in ("(survived)", "(error)") for row in rows))


if __name__ == "__main__":
    sys.exit(main())

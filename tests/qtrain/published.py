"""The recipes of the field's papers: by which name they are had, and what is measured of each."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator

import torch
from recipe_cases import LAYERS, numbers
from recorded_results import Recorded, recorded

from qtrain import Recipe, quantize, recipes

HEADERS = ("published recipe", "name", "lines", *LAYERS, "oracles", "left out, or not said")

#: as it is called -> how it is made, or what of it no recipe can say
PUBLISHED: dict[str, Callable[[], Recipe] | str] = {
    "Banner et al. 2018": recipes.banner2018,
    "WAGE": "integer weights and updates",
    "IBM FP8 2018": recipes.ibm_fp8,
    "HFP8": recipes.hfp8,
    "Unified INT8": recipes.unified_int8,
    "Distribution-adaptive INT8": "scales by channel, by the gradients' distribution",
    "StatQuant, per sample": recipes.statquant,
    "LUQ": recipes.luq,
    "Accuracy Booster": recipes.hbfp4,
    "SwitchBack": recipes.switchback,
    "Jetfire": recipes.jetfire,
    "FP8, current scaling": recipes.fp8,
    "FP8, delayed scaling": recipes.fp8_delayed,
    "DeepSeek-V3": recipes.deepseek_v3,
    "COAT": recipes.coat,
    "MXFP8, rounded up": recipes.mxfp8,
    "MXFP8, OCP": lambda: recipes.mxfp8(variant="ocp"),
    "MXFP4 backward (2502.20586)": recipes.mxfp4,
    "FP4 All the Way": recipes.fp4_all_the_way,
    "NVFP4": recipes.nvfp4,
    "Four Over Six": recipes.four_over_six,
    "In-hindsight ranges": recipes.in_hindsight,
    "UFP4": "its scales, of which no source was had",
    "TetraJet": recipes.tetrajet,
    "MXINT8": recipes.mxint8,
    "12-bit accumulators": recipes.lba,
    "Quartet II": recipes.quartet2,
}


def but(cases: list[Recorded], *data: str) -> list[Recorded]:
    """Those of other inputs: recorded/README.md says what these do to the source."""
    return [case for case in cases if case.data not in data]


#: e2m1's ties go away from 0 in Quartet II's code
_UNTIED = ("gaussian", "heavy_tailed", "edges", "spread")
_TE = recorded("transformer_engine", "NVFP4QuantizerRef.quantize", levels=2)
#: recipe -> what other people's code gave, with which its tests compare its operands
RECORDED: dict[str, list[Recorded]] = {
    "jetfire": recorded("jetfire", stochastic=False),
    "fp8": recorded("transformer_engine", "CurrentScaling", pow_2_scales=False),
    "deepseek-v3": recorded(
        "transformer_engine", "Blockwise", pow_2_scales=False, format="e4m3"
    ),
    "mxfp8": recorded("torchao", "to_mx", format="e4m3", rule="rceil"),
    "mxfp8, ocp": recorded("torchao", "to_mx", format="e4m3", rule="floor"),
    "mxfp6": recorded("torchao", "to_mx", format="e3m2", rule="floor"),
    # "tiny": its scale of integers, times their largest power of two, ends at 2^-127 too
    "mxint8": but(recorded("microxcaling", format="int8", rule="floor", round="even"), "tiny"),
    "mxfp4": recorded("quartet", "mxfp4_forward_kernel", what="Tseng, nearest"),
    "mxfp4-e3m0": recorded("torchao", "to_mx", format="e2m1", rule="rceil"),
    "tetrajet": but(recorded("tetrajet", "twice"), "huge", "edges"),
    "nvfp4": [c for c in _TE if not {"nvfp4_use_4over6", "row_scaled_nvfp4"} & set(c.settings)],
    # fp32 decides between two errors that are equal, overflow or vanish
    "four-over-six": but(
        recorded("fouroversix", format="nvfp4", round_style="nearest", scale_rule="mse"),
        "tiny", "huge", "halves", "midpoints",
    ),
    "quartet2": [
        *recorded("quartet", "rtn_1x16s", _UNTIED, four_over_six=True),
        *recorded("quartet", "eden_1x16s", _UNTIED, scale_override=17 / 16 * 0.93),
    ],
}  # fmt: skip


def lines(name: str) -> int:
    """Lines of code of a named recipe's function, and of what it uses of its own file."""
    function = getattr(recipes, name.partition(",")[0].replace("-", "_"))
    tree = ast.parse(inspect.getsource(inspect.getmodule(function)))  # type: ignore[arg-type]
    nodes: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            nodes[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            nodes[node.targets[0].id] = node
    seen, wanted = set(), [function.__name__]
    while wanted:
        name = wanted.pop()
        if name in nodes and name not in seen:
            seen.add(name)
            inner = ast.walk(nodes[name])
            wanted += [part.id for part in inner if isinstance(part, ast.Name)]
    return sum(_code(nodes[name]) for name in seen)


def _code(node: ast.stmt) -> int:
    """Lines without those of its docstring, as the formatter leaves them."""
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        node.body = node.body[1:]
        return 1 + sum(map(_code, node.body))
    return node.end_lineno - node.lineno + 1  # type: ignore[operator]


def runs(recipe: Recipe, layer: str) -> str:
    """Whether a training step of a layer is quantized, and finite: "yes", or why not."""
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    plain, x = make(), numbers("gaussian", *shape, seed=1).requires_grad_()
    try:
        model = quantize(torch.nn.Sequential(plain), recipe=recipe)[0]  # type: ignore[index]
        gradients = []
        for one in (plain, model):
            y = one(x, x, x)[0] if layer == "attention" else one(x)
            loss = y.square().mean()
            gradients.append(torch.autograd.grad(loss, [x, *one.parameters()]))
    except (TypeError, ValueError) as error:
        return f"no: {error}"
    finite = all(bool(torch.isfinite(part).all()) for part in gradients[1])
    moved = not torch.equal(gradients[0][0], gradients[1][0])
    return "yes" if finite and moved else "no"


def oracles(recipe: str) -> str:
    """The rule in numpy, and whose recorded cases its operands equal: how many."""
    found: dict[str, int] = {}
    for case in RECORDED.get(recipe, []):
        (version,) = re.findall(r"commit (\w{7})", case.made_by["version"])
        title = f"{case.made_by['name']} {version}"
        found[title] = found.get(title, 0) + 1
    return "; ".join(["numpy", *(f"{title}: {count}" for title, count in found.items())])


def rows() -> Iterator[tuple[str, ...]]:
    for title, made in PUBLISHED.items():
        if isinstance(made, str):
            yield title, "-", "-", *("-" for _ in LAYERS), "-", made
        else:
            recipe = made()
            cells = [f"`{recipe.name}`", str(lines(recipe.name))]
            cells += [runs(recipe, layer) for layer in LAYERS]
            yield title, *cells, oracles(recipe.name), recipe.leaves_out or "-"


def markdown() -> str:
    said = sum(callable(made) for made in PUBLISHED.values())
    table = [HEADERS, tuple("-" for _ in HEADERS), *rows()]
    lines = ["|".join(["", *(f" {cell} " for cell in row), ""]) for row in table]
    return "\n".join([f"{said} of {len(PUBLISHED)} have a name:", "", *lines])

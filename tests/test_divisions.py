"""A tensor is divided by a Python number in one place, `quantizers.devices.numbers.divided`.

torch on CUDA multiplies by the reciprocal instead, which is off in the last bit: a scale, and with
it every code, would depend on the device.  What divides in the files whose bits reach a result is
listed here, by what makes it safe.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: files whose bits reach a result: all of quantizers, and of qtrain what runs in a training step
CHECKED = (
    "quantizers/*.py", "quantizers/[!k]*/*.py", "quantizers/kernels/*.py", "qtrain/layer_state.py",
    "qtrain/recipe/transforms.py", "qtrain/autograd/*.py", "qtrain/products/blockwise/*.py",
    "qtrain/products/engines/half/*.py", "qtrain/norms/*.py", "qtrain/norms/kernels/*.py",
    "qtrain/products/*.py", "qtrain/products/engines/*.py",
    "qtrain/layers/*.py", "qtrain/weights/bounded.py", "qtrain/weights/decay.py",
    "qtrain/inspection/inspect.py", "qtrain/data/transforms.py",
)  # fmt: skip
#: constants, in Python's floats and numpy
UNCHECKED = {"qtrain/norms/constants.py"}

TENSOR_BY_TENSOR = {
    "quantizers/formats/float_format.py: magnitude / step",
    "quantizers/devices/numbers.py: x / constant(number, x)",
    "quantizers/elements.py: x / expand(divisor, x.shape, block)",
    "quantizers/learned/lsq.py: self._summed(x) / count",
    "quantizers/learned/lsq.py: self._summed(x.double().square()) / count",
    "quantizers/learned/lsq.py: total / count",
    "quantizers/learned/stepped.py: "
    "x / expand(step, x.shape, self.granularity.block_shape(x.shape))",
    "qtrain/products/gradients.py: (q.dequantize().double() - wide) "
    "/ torch.where(size == 0, float('inf'), size)",
    "qtrain/products/learning.py: part.view_as(each) / total",
    "quantizers/table_rounding.py: (packed.double() - low) / (high - low)",
    "quantizers/scales/errors.py: dot / (own * other).sqrt()",
    "quantizers/scales/levels.py: as_real(x).double() / expand(whole, x.shape, block)",
    "quantizers/scales/levels.py: bound / outer.scale",
    "quantizers/scales/levels.py: own / dot",
    "quantizers/scales/rules.py: constant(number, x) / x",
    "quantizers/scales/rules.py: low / divisor",
    "quantizers/real_offset.py: (x - low) / divisor",
    "quantizers/ranges/running.py: state['high'].view(high.shape) / share",
    "quantizers/ranges/running.py: state['low'].view(low.shape) / share",
    "quantizers/ranges/running.py: torch.stack([state['low'], state['high']]) "
    "/ torch.where(share == 0, 1.0, share)",
    "qtrain/weights/bounded.py: self.get_buffer('rho') / torch.where(off, 1.0, whole)",
    "qtrain/weights/bounded.py: self.size / torch.where(off, 1.0, norms)",
    "qtrain/data/transforms.py: (images.float() - mean) / std",
    "qtrain/norms/normalize.py: weight.to(dtype) / divisor",
    "qtrain/norms/normalize.py: product / divisor",
    "qtrain/norms/normalize.py: grad_divisor * divisor / more",
    "qtrain/norms/rounded.py: centered / divisor",
    "qtrain/norms/rounded.py: h / divisor",
    "qtrain/norms/rounded.py: q / square",
    "qtrain/weights/decay.py: self._wanted[name] / torch.where(norms == 0, 1.0, norms)",
    "qtrain/weights/decay.py: self._weights[name].channels.norms(weight) / self._norms[name]",
}
#: torch takes the tensor's reciprocal on every device alike
NUMBER_BY_TENSOR = {
    "qtrain/norms/deviations.py: self.times * self.times / (divisor * count)",
    "qtrain/norms/normalize.py: 1 / divisor",
    "qtrain/weights/decay.py: rate / norms.flatten().float().square()",
}
PYTHON = {
    "quantizers/learned/lsq.py: 1 / math.sqrt(count * self.format.high)",
    "quantizers/learned/offset.py: float(wide.abs().max()) / levels",
    "quantizers/learned/offset.py: share / 20",
    "quantizers/learned/stepped.py: int((x < 0).sum()) / x.numel()",
    "qtrain/recipe/transforms.py: 1 / math.sqrt(size)",
    "qtrain/products/blockwise/rows.py: fmt.largest / unit",
    "quantizers/scales/clipping.py: down /= 2",
    "quantizers/scales/clipping.py: reach / scale.headroom",
    "quantizers/scales/clipping.py: reached(scale.over, scale.format) / scale.format.largest",
    "quantizers/scales/elements.py: top / elements.largest",
    "quantizers/scales/levels.py: max(tops) / scale.headroom",
    "quantizers/scales/levels.py: most / scale.headroom",
    "quantizers/scales/levels.py: most / top",
    "quantizers/scales/levels.py: top / over.headroom",
    "quantizers/scales/levels.py: top / scale.headroom",
    "quantizers/scales/rules.py: (format.high - format.low) / 2",
    "quantizers/scales/rules.py: top / scale.headroom",
    "quantizers/kernels/team.py: Path(torch.__file__).parent / 'lib'",
    "qtrain/products/blockwise/fused.py: 1 / by.unit",
    "qtrain/layers/attend.py: 1 / math.sqrt(query.shape[-1])",
    "qtrain/data/transforms.py: (height - side) / 2",
    "qtrain/data/transforms.py: (second * count - first * first) / count ** 2",
    "qtrain/data/transforms.py: (width - side) / 2",
    "qtrain/data/transforms.py: 4 / 3",
    "qtrain/data/transforms.py: first / count",
    "qtrain/data/transforms.py: target / aspect",
    # compiled, fp64 numbers that are rounded to fp32 later
    "qtrain/norms/largest.py: one / k",
    "qtrain/norms/deviations.py: self.times * one / chunks",
    "qtrain/norms/deviations.py: self.times * range_factor(self.constant, n) / chunks",
    "qtrain/norms/deviations.py: math.pi / 2",
    "qtrain/norms/deviations.py: self._factor / count",
    "qtrain/norms/batch.py: count / (count - 1)",
    "qtrain/norms/arithmetic.py: terms / count",
    "qtrain/norms/ranks.py: count / self.total",
    "qtrain/norms/ranks.py: place.div(k, rounding_mode='floor')",  # integers
}
#: numba's own numbers, on the CPU alone
COMPILED = {
    "quantizers/kernels/compiled_elements.py: x / step",
    "quantizers/kernels/compiled_whole.py: half / f32(f32(largest - lowest) * f32(0.5))",
    "quantizers/kernels/compiled_whole.py: low / divisor",
    "quantizers/kernels/compiled_whole.py: running_high[0] / divisor",
    "quantizers/kernels/compiled_whole.py: running_low[0] / divisor",
    "quantizers/kernels/compiled_whole.py: width / c[_LARGEST]",
    "qtrain/norms/kernels/compiled_passes.py: v / step",
}
#: means of floating-point numbers, whose sums are added in the device's own order as well
MEANS = {
    "qtrain/layers/multihead.py: weights.mean(1)",
    "qtrain/weights/bounded.py: norms.mean()",
    "qtrain/norms/samples.py: self.rows().abs().mean(1)",
    "qtrain/norms/samples.py: self.rows().square().mean(1)",
    "qtrain/norms/largest.py: chosen.abs().mean(1)",
    "qtrain/norms/normalize.py: input.mean(others(input), dtype=accumulated)",
}
ALLOWED = TENSOR_BY_TENSOR | NUMBER_BY_TENSOR | PYTHON | COMPILED | MEANS
#: other names of a division; `Arithmetic.mean` and `Sample`'s own are divisions by `divided`
CALLS = {"div", "div_", "divide", "divide_", "true_divide", "true_divide_", "mean", "nanmean"}
OWN = ("a.", "self.arithmetic.")


def divisions(source: str) -> set[str]:
    """Every division in a file, as it is written."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            written = ast.unparse(node)
            if node.func.attr in CALLS and not written.startswith(OWN):
                found.add(written)
    return found


def test_nothing_divides_a_tensor_by_a_number() -> None:
    files = {path for pattern in CHECKED for path in ROOT.glob(pattern)}
    names = {str(path.relative_to(ROOT)): path for path in files}
    found = {
        f"{name}: {text}"
        for name, path in names.items()
        if name not in UNCHECKED
        for text in divisions(path.read_text())
    }
    assert not found - ALLOWED, "divide by devices.numbers.divided, or say why it is safe"
    assert not ALLOWED - found, "no longer there"


def test_the_search_finds_every_way_to_divide() -> None:
    source = "x / 2\nx /= n\ntorch.div(x, 3)\nx.div_(3)\nx.mean(1)\nx * 2\nx // 2\ndivided(x, 2)"
    assert divisions(source) == {"x / 2", "x /= n", "torch.div(x, 3)", "x.div_(3)", "x.mean(1)"}

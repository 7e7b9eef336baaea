"""What computes a product, and whether it keeps its promise: tried, never taken by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from quantizers import QTensor

from ...autograd.capture import capturing
from ..convolution import Convolution
from ..operations import KINDS, BatchedMatmul, Linear, Operation
from ..product import Product
from .epilogue import Epilogue
from .task import ANY, Promise, Span, Task

#: of a and b: one number each, or None
ZeroPoints = tuple[Tensor | None, Tensor | None]


class Engine(ABC):
    """A unit that multiplies and adds; one line in `choice.ENGINES` makes it serve.

    name               as the summary and a probe know it
    promise            of its sums
    device_types       where it may be tried; (): anywhere
    takes_zero_point   whether it serves tasks with one; of "float" ones: whether it reads codes
    takes_zero_points  whether it serves tasks with those of both operands
    half               the 16-bit dtype in which it multiplies
    """

    name: str
    promise: Promise = "exact"
    device_types: tuple[str, ...] = ()
    takes_zero_point = False
    takes_zero_points = False
    half: torch.dtype | None = None

    @abstractmethod
    def supports(self, task: Task) -> bool:
        """From the task alone: the kind of product, its bounds and shapes."""

    def has_units(self, device_type: str) -> bool:
        """Whether that kind of device has units for it: without them it is slow, not wrong."""
        return not self.device_types or device_type in self.device_types

    def product(
        self,
        task: Task,
        a: Tensor,
        b: Tensor,
        like: Tensor,
        *,
        zero_point: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """With an epilogue: its result.  Without: `sums`.

        a, b, like: as `Operation.product` takes them, the elements as their formats keep them;
        zero_point: 0-d, given where the task says so.
        """
        total = self.sums(task, a, b, like, zero_point)
        return total if epilogue is None else epilogue(task.product.operation, total)

    def of_quantized(
        self, task: Task, a: QTensor, b: QTensor, like: Tensor, epilogue: Epilogue
    ) -> Tensor:
        """`product` of a "float" task: of any elements, their zero points taken off."""
        return self.product(task, a.unshifted(), b.unshifted(), like, epilogue=epilogue)

    def sums(
        self, task: Task, a: Tensor, b: Tensor, like: Tensor, zero_point: Tensor | None
    ) -> Tensor:
        """The exact integers as fp32, int32 or fp64, whichever holds `task.bound`, given away; not
        called where `product` does more at once."""
        raise NotImplementedError

    def of_shifted(
        self,
        task: Task,
        a: Tensor,
        b: Tensor,
        like: Tensor,
        zero_points: ZeroPoints,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """`product` of elements less their zero points, for a task with `zero_points`; not called
        where the engine takes none."""
        raise NotImplementedError

    def admitted_on(self, device_type: str) -> bool:
        """Whether the engine is `admitted` on this kind of device; tried once."""
        return admitted(self, device_type)

    # What torch.compiler.assume_constant_result does, without importing the compiler for it
    # (1.4 s).  It calls a method with constants alone; an engine is none to torch before 2.13.
    admitted_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


_Case = tuple[Operation, tuple[int, ...], tuple[int, ...]]
#: operation, shape of the input and of the canonical weight
_CASES: tuple[_Case, ...] = (
    (Linear(), (4, 4608), (1, 4, 4608)),
    (Linear(), (33, 70), (1, 9, 70)),
    (Linear(), (140000, 2), (1, 3, 2)),  # beyond int32
    (Linear(), (40, 136), (1, 130, 136)),
    (BatchedMatmul(), (2, 33, 4608), (2, 70, 4608)),
    (BatchedMatmul(), (2, 1030, 65), (2, 9, 65)),
    (Convolution((1, 1), (1, 1), (1, 1), 1), (2, 64, 5, 5), (1, 24, 64, 3, 3)),
    (Convolution((2, 2), (1, 1), (1, 1), 1), (1, 17, 8, 7), (1, 16, 17, 3, 3)),
    (Convolution((2, 2), (0, 0), (1, 1), 1), (1, 64, 7, 8), (1, 32, 64, 1, 1)),
    (Convolution((1, 1), (2, 2), (2, 2), 2), (1, 32, 6, 6), (2, 16, 16, 3, 3)),
    (Convolution((1, 1), (1, 1), (1, 1), 32), (1, 32, 6, 6), (32, 1, 1, 3, 3)),
    (Convolution((2, 2), (1, 1), (1, 1), 2), (3, 4, 40, 40), (2, 3, 2, 3, 3)),
    (Convolution((1, 1), (1, 1), (1, 1), 1), (1, 120, 4, 4), (1, 130, 120, 3, 3)),
)
#: what a and b are drawn from
_SPANS = (
    (Span(0, 255), Span(-128, 127)),
    (Span(-128, 127), Span(-128, 127)),
    (Span(-32767, 32767), Span(-128, 127)),
    (Span(-128, 127), Span(0, 65535)),
    (Span(-2048, 2047), Span(-32768, 32767)),
)

#: engines that were tried on a kind of device and broke their promise there
_refused: set[tuple[Engine, str]] = set()


def was_refused(engine: Engine, device_type: str) -> bool:
    """Whether the engine was tried on this kind of device, and is not `admitted`."""
    return (engine, device_type) in _refused


@cache
def admitted(engine: Engine, device_type: str) -> bool:
    """Whether this kind of device has units for the engine, and its products there are what it
    promises, extreme operands included.

    Every kind of product of matrices and of convolutions with stride, dilation, groups and zero
    point, those that the engine supports; compared with float64's sums.
    """
    if not engine.has_units(device_type):
        return False
    if device_type == "meta" or not torch.get_device_module(device_type).is_available():
        return True  # no numbers, or those of a device that torch only imagines: none is wrong
    if capturing():
        raise ValueError(
            "a CUDA graph is being captured, in which no engine can be tried for the first time; "
            "run a step before the capture"
        )
    keeps = {"exact": _is_exact, "float": _is_near}[engine.promise]
    # no mode, such as the watch over a model's first forward, and no default device of the user's
    with _disable_current_modes(), torch.device("cpu"):
        kept = all(
            keeps(engine, product, a, b, like, torch.device(device_type))
            for case in _CASES
            for product, a, b, like in _products(*case)
        )
    if not kept:
        _refused.add((engine, device_type))
    return kept


def _products(
    operation: Operation, input: tuple[int, ...], weight: tuple[int, ...]
) -> Iterator[tuple[Product, Tensor, Tensor, Tensor]]:
    """The three, and their a, b and like."""
    x, w = torch.zeros(input, dtype=torch.float32), torch.zeros(weight, dtype=torch.float32)
    output = operation.product("forward", x, w, x)
    for kind, operands in zip(KINDS, ((x, w, x), (output, w, x), (output, x, w)), strict=True):
        yield Product(operation, kind), *operands


def _drawn(shape: torch.Size, span: Span) -> Tensor:
    """Pseudo-random; int64."""
    return (torch.arange(shape.numel()) * 7919 % (span.high - span.low + 1) + span.low).view(shape)


def _is_exact(
    engine: Engine, product: Product, a: Tensor, b: Tensor, like: Tensor, device: torch.device
) -> bool:
    """The sums, the extreme ones too, are float64's, which are exact: far below 2^53."""
    size = product.terms(a.shape, b.shape)
    for pair in _SPANS:
        one, other = pair
        tasks = [Task(product, *size, one, other)]
        if not engine.supports(tasks[0]):
            tasks = [Task(product, *size, one, other, sums=False)]
        if engine.takes_zero_point:
            tasks.append(Task(product, *size, one, other, zero_point=True, sums=False))
        if engine.takes_zero_points:
            wide, broad = (Span(span.low - span.high, span.high - span.low) for span in pair)
            tasks.append(Task(product, *size, wide, broad, sums=False, zero_points=True))
        tasks = [task for task in tasks if engine.supports(task)]
        extremes = (one.high, other.low), (one.high, other.high), (one.low, other.low)
        draws = [(torch.full(a.shape, x), torch.full(b.shape, y)) for x, y in extremes]
        draws.append((_drawn(a.shape, one), _drawn(b.shape, other)))
        for left, right in draws if tasks else ():
            for task in tasks:
                shift = one.high - 50 if task.zero_point or task.zero_points else 0
                turn = other.low + 3 if task.zero_points else 0
                exact = product.run((left - shift).double(), (right - turn).double(), like)
                operands = left.to(device), right.to(device), like.to(device)
                zeros = tuple(
                    torch.tensor(number, dtype=torch.int32, device=device)
                    for number in (shift, turn)
                )
                after = None if task.sums else Epilogue()
                if task.zero_points:
                    got = engine.of_shifted(task, *operands, (zeros[0], zeros[1]), after)
                else:
                    zero_point = zeros[0] if task.zero_point else None
                    got = engine.product(task, *operands, zero_point=zero_point, epilogue=after)
                if not torch.equal(got.cpu(), exact.to(got.dtype)):
                    return False
    return True


def _is_near(
    engine: Engine, product: Product, a: Tensor, b: Tensor, like: Tensor, device: torch.device
) -> bool:
    """The sums of what every mode of fp32 units holds, 8 significant bits, are float64's but for
    the rounding of each addition: in fp32; of parts of them, and of the result, in bf16.  So are
    those of codes, where the engine takes a zero point from them."""
    size = product.terms(a.shape, b.shape)
    left, right = (_drawn(x.shape, Span(-127, 127)) for x in (a, b))
    exact = product.run(left.double(), right.double(), like)
    reach = product.run(left.abs().double(), right.abs().double(), like)
    one, other = (QTensor(x.float().to(device)) for x in (left, right))
    pairs = [(one, other)]
    if engine.takes_zero_point:
        point = torch.tensor(127, dtype=torch.int32, device=device)
        pairs.append((one, QTensor((right + 127).to(torch.uint8).to(device), zero_point=point)))
    slack = {None: size[0] * size[1] * 2.0**-22, torch.bfloat16: 2.0**-4}
    for unit, share in slack.items():
        task = Task(
            product, *size, ANY, ANY, "float", sums=False, unit=unit, significant=8,
            half=engine.half,
        )  # fmt: skip
        for operands in pairs if engine.supports(task) else ():
            got = engine.of_quantized(task, *operands, like.float().to(device), Epilogue())
            if not ((got.cpu() - exact).abs() <= share * reach).all():
                return False
    return True

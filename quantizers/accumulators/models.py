"""What a sum of products can be told: four kinds of accumulators, each shown as the call, in the
words of a recipe's file, that makes it.

All of them take the terms of a sum in ascending k.  Where a product is exact, that is a[k] b[k]
itself: of elements of up to 24 significant bits, it is not rounded before it is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from .. import checks
from ..formats import FloatFormat, fp32
from ..names import take_names
from ..rounding import Rounding, nearest_even

Inside = Literal["rounded", "exact"]
Wrap = Literal["wrap", "saturate"]


@dataclass(frozen=True)
class Exact:
    """The exact sum, rounded once, to the nearest fp32, ties to even: a Kulisch accumulator, or
    integer hardware that is wide enough.  Beyond fp32 it is infinite."""

    #: whether sums need random bits
    noisy: ClassVar[bool] = False

    def __str__(self) -> str:
        return "exact()"


@dataclass(frozen=True)
class Sequential:
    """One sum in a floating-point format, rounded after every addition.

        s = start, to nearest;  for every k:  s = R(s + a[k] b[k])

    format        of the sum, or its name, "e6m9" too; an overflow is what it states
                  (`FloatFormat.on_overflow`)
    rounding      R; a stochastic one takes random bits of its own for every addition
    product       format to which R rounds every product before it is added; None: products are
                  exact, as in a fused multiply-add
    chunk         how many terms are summed from 0, before that sum is added to s, rounded too: two
                  levels (Wang et al. 2018, arXiv 1812.08011, 2.3); None: one level
    inside        of a chunk: "rounded", as above, or "exact": the chunk's sum is exact and rounded
                  once, at its boundary, an approximation of the former
    compensated   Kahan's summation, its four operations rounded by R each, in s (of a chunk, and of
                  chunks):  y = R(p - c);  t = R(s + y);  c = R(R(t - s) - y);  s = t
    """

    format: FloatFormat
    rounding: Rounding = nearest_even
    product: FloatFormat | None = None
    chunk: int | None = None
    inside: Inside = "rounded"
    compensated: bool = False

    def __post_init__(self) -> None:
        take_names(self, format="sum", product="sum", rounding="rounding")
        for name in ("format", "product"):
            value = getattr(self, name)
            if value is not None or name == "format":
                checks.instance(name, value, FloatFormat, "a FloatFormat such as fp16")
                if not (value.signed and value.zero):
                    raise ValueError(f"{name}: got {value}, need a format with a sign and a zero")
        checks.instance("rounding", self.rounding, Rounding, "a Rounding such as nearest_even")
        if self.chunk is not None:
            checks.integer("chunk", self.chunk, low=1)
        checks.choice("inside", self.inside, get_args(Inside))
        if checks.boolean("compensated", self.compensated) and self.rounding.mode == "stochastic":
            raise ValueError(
                "compensated: got True with a stochastic rounding, whose error it would take back; "
                "use one of the two"
            )
        if self.inside == "exact":
            if self.chunk is None:
                raise ValueError("inside: got 'exact' without a chunk; give chunk=64, or exact()")
            if self.product is not None:
                raise ValueError(
                    f"product: got {self.product} with inside='exact', where products are exact; "
                    f"leave one out"
                )

    @property
    def noisy(self) -> bool:
        """Whether sums need random bits."""
        return self.rounding.random_bits > 0

    def __str__(self) -> str:
        parts = [str(self.format)]
        parts += [f"product={self.product}"] * (self.product is not None)
        parts += [f"rounding={self.rounding}"] * (self.rounding != nearest_even)
        parts += [f"chunk={self.chunk}"] * (self.chunk is not None)
        parts += ["inside=exact"] * (self.inside == "exact")
        parts += ["compensated=True"] * self.compensated
        return f"sequential({', '.join(parts)})"


@dataclass(frozen=True)
class Aligned:
    """A unit that aligns a group of exact products and the running sum, and truncates: tensor cores
    (Fasi et al. 2021; MMA-Sim, arXiv 2511.10909).

        e = max(exponents of the group's products, exponent of s)
        s = T(sum of trunc(p 2^(bits - e)) over the group and s, times 2^(e - bits))

    The exponent of a product is the sum of its operands', subnormals' and zero's being the smallest
    of their format; trunc is toward zero, the sum of the truncated terms exact, T toward zero to
    `kept` fraction bits.  Beyond fp32 s is infinite.

    terms     products of a group, in ascending k; the last group may be shorter
    bits      fraction bits to which the terms of a group are truncated
    kept      fraction bits of s, at fp32's exponents
    promote   after how many terms s is added to another sum, in fp32 to nearest, and begins at 0
              again (DeepSeek-V3, arXiv 2412.19437, 3.3.2); a multiple of `terms`; None: never
    takes     the formats of operands that the unit multiplies; (): any
    name      of the unit
    """

    terms: int
    bits: int
    kept: int = 23
    promote: int | None = None
    takes: tuple[FloatFormat, ...] = ()
    name: str = ""
    noisy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.integer("terms", self.terms, low=1, high=1024)
        checks.integer("bits", self.bits, low=1, high=40)
        checks.integer("kept", self.kept, low=1, high=23)
        if self.promote is not None:
            checks.integer("promote", self.promote, low=1)
            if self.promote % self.terms:
                raise ValueError(
                    f"promote: got {self.promote}, need a multiple of terms, {self.terms}"
                )
        if not isinstance(self.takes, tuple) or any(
            not isinstance(one, FloatFormat) for one in self.takes
        ):
            checks.refuse("takes", self.takes, "a tuple of FloatFormats")
        checks.text("name", self.name)

    def __str__(self) -> str:
        own = f"terms={self.terms}, bits={self.bits}"
        own += f", kept={self.kept}" * (self.kept != 23)
        made = f"unit({', '.join(self.name.split())}" if self.name else f"aligned({own}"
        promoted = f", promote={self.promote}" if self.promote is not None else ""
        return f"{made}{promoted})"


@dataclass(frozen=True)
class Integer:
    """A sum of products of integers in `bits` bits, two's complement.

    overflow   "wrap": modulo 2^bits, whatever the order; "saturate": at the ends, -2^(bits - 1) and
               2^(bits - 1) - 1, after every addition
    """

    bits: int
    overflow: Wrap
    noisy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.integer("bits", self.bits, low=2, high=48)
        checks.choice("overflow", self.overflow, get_args(Wrap))

    def __str__(self) -> str:
        return f"integer({self.bits}, overflow={self.overflow})"


Accumulator = Exact | Sequential | Aligned | Integer


def exact() -> Exact:
    """The exact sum, rounded once: `Exact`."""
    return Exact()


def sequential(
    format: FloatFormat | str,
    *,
    rounding: Rounding | str = nearest_even,
    product: FloatFormat | str | None = None,
    chunk: int | None = None,
    inside: Inside = "rounded",
    compensated: bool = False,
) -> Sequential:
    """A floating-point sum, rounded after every addition: `Sequential`; formats and the rounding
    by their names, too."""
    return Sequential(format, rounding, product, chunk, inside, compensated)  # type: ignore[arg-type]


def aligned(
    *, terms: int, bits: int, kept: int = fp32.mantissa, promote: int | None = None
) -> Aligned:
    """A unit that aligns and truncates: `Aligned`; `accumulators.get` has those of real GPUs."""
    return Aligned(terms, bits, kept, promote)


def integer(bits: int, *, overflow: Wrap) -> Integer:
    """A sum of integers that wraps or saturates: `Integer`."""
    return Integer(bits, overflow)

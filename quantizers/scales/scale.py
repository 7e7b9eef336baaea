"""Scale: by which rule, in which format and in how many levels a range becomes a scale."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, get_args

from .. import checks
from ..formats import NAMED, FloatFormat, Format, IntFormat, TableFormat, fp32
from ..granularity import Granularity, per_tensor
from ..names import take_names
from ..rounding import Rounding, nearest_even

Rule = Literal["amax", "ocp_floor", "ocp_ceil", "even", "rceil"]
By = Literal["mse", "mae", "absmax", "cosine"]


@dataclass(frozen=True, repr=False)
class Scale:
    """How the bound of a granule, its largest magnitude amax, becomes the scale of its elements.

    format        of the scale: fp32, e8m0 (powers of two), e4m3, ..., or its name
    rule          "amax"       headroom * amax / top, rounded to the format by `rounding`
                  "ocp_floor"  2^(floor(log2 a) - emax), a = headroom * amax     (OCP MX v1.0, 6.3)
                  "ocp_ceil"   2^(ceil(log2 a) - emax)
                  "even"       2^(floor(log2 a') - emax), a' = a rounded half up to the elements'
                               mantissa bits                                     (torchao: EVEN)
                  "rceil"      2^ceil(log2(a / top))       (cuBLAS; torchao: RCEIL)
                  emax is the exponent of the elements' largest number.  All but "amax" are exact,
                  and need a format of powers of two (no mantissa), whose ends they keep to
    rounding      of the quotient to the format, or its name, stochastic too (noise of its own, of
                  the quantizer's key); fp32 takes the quotient as it is
    headroom      amax is multiplied by: 17/16 leaves room for an e4m3 scale rounded down, 12/7 with
                  rounding=floor is Overflow-Aware Scaling for e2m1 (arXiv 2603.08713)
    prescale      elements are x * prescale / scale, the value is divided by it: 3/4 with
                  "ocp_floor" clips no e2m1 element (Tseng et al. 2025, arXiv 2502.20586; Quartet)
    top           the element that amax becomes; None: the elements' largest
    candidates    several tops, each tried; a granule keeps the one of the least error, the first
                  of equals: (6, 4) is Four Over Six (arXiv 2512.02010).  Elements of every try are
                  rounded to nearest, so that stochastic ones stay unbiased
    by            that error, of values against x in fp64: "mse", "mae", the largest, "absmax", or
                  "cosine", 1 - the cosine of the angle between them: with tops beyond the elements'
                  largest a search for where to clip, as Unified INT8's (arXiv 1912.12607)
    over          a scale of the scales, whose elements they are, or None: Scale(fp32, top=448)
                  aims at 448 for the largest of e4m3 scales (NVFP4; 256 for Four Over Six)
    granularity   of an `over`, in elements of x: blocks of it are whole blocks of the quantizer's
    correction    granules of whole blocks, or None: scales are multiplied by sum y^2 / sum(y e), y
                  and e a granule's elements before and after they were rounded (to nearest), and
                  `rounding` rounds what comes of it: the projection on x is exact but for that,
                  and after a random rotation nearly all bias is gone, with stochastic scales
                  (MS-EDEN: Panferov et al. 2026, arXiv 2601.22813)
    reciprocal    elements by multiplication with the fp32 reciprocal, as TransformerEngine's
                  kernels make them, not by division

    fl is a rounding to fp32, r = fl(top / headroom).  One level of rule "amax":
        scale = format(fl(amax / r));   elements = round(x / scale)
    Two levels, R = fl(top * over.top / (headroom * over.headroom)), block and whole the amax of a
    block and of its outer granule, of finite blocks; top the largest of candidates in R:
        outer = max(fl(whole / R), 2^-126), 1 where whole is 0   (a narrower format rounds it too)
        scale = format(fl(fl(block / outer) / r));   elements = round(x / fl(scale * outer))
    and with `reciprocal`, M fp32's largest number:
        S = min(fl(R / whole), M), 1 where whole is 0;   outer = fl(1 / S)
        scale = format(fl(block * fl(S * fl(1 / r))));   of candidates c, the largest C in r:
        scale = format(fl(fl(fl(block / r) * S) * fl(C / c)))
        elements = round(fl(x * min(fl(1 / fl(scale * outer)), M)))
    A single fp32 scale is then fl(1 / S), S = min(fl(r / amax), M), and elements round(fl(x * S)).

    A scale of 0 (amax 0, or too small for the format) makes elements 0; where the format holds no
    0, only amax 0 has it, and the smallest scale serves the rest.  A scale beyond its format
    saturates, unless that states its overflow; that of what is not finite is not finite.

    Raises TypeError or ValueError for settings that no rule honours.
    """

    format: FloatFormat = fp32
    _: KW_ONLY
    rule: Rule = "amax"
    rounding: Rounding = nearest_even
    headroom: float = 1.0
    prescale: float = 1.0
    top: float | None = None
    candidates: tuple[float, ...] = ()
    by: By = "mse"
    over: Scale | None = None
    granularity: Granularity = per_tensor
    correction: Granularity | None = None
    reciprocal: bool = False

    if TYPE_CHECKING:  # the fields, of which some take a name

        def __init__(
            self,
            format: FloatFormat | str = ...,
            *,
            rule: Rule = ...,
            rounding: Rounding | str = ...,
            headroom: float = ...,
            prescale: float = ...,
            top: float | None = ...,
            candidates: tuple[float, ...] = ...,
            by: By = ...,
            over: Scale | None = ...,
            granularity: Granularity = ...,
            reciprocal: bool = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        take_names(self, "scale.", format="format", rounding="rounding")
        checks.instance("scale.format", self.format, FloatFormat, "a FloatFormat such as e8m0")
        checks.choice("scale.rule", self.rule, get_args(Rule))
        checks.instance("scale.rounding", self.rounding, Rounding, "a Rounding such as ceil")
        checks.choice("scale.by", self.by, get_args(By))
        checks.instance("scale.granularity", self.granularity, Granularity, "a Granularity")
        if not isinstance(self.correction, Granularity | None):
            checks.refuse("scale.correction", self.correction, "a Granularity or None")
        checks.boolean("scale.reciprocal", self.reciprocal)
        for name in ("headroom", "prescale"):
            checks.number(f"scale.{name}", getattr(self, name), low=2.0**-20, high=2.0**20)
        for top in (*((self.top,) if self.top is not None else ()), *self._candidates()):
            checks.number("scale.top", top, low=2.0**-20, high=2.0**48)
        if self.top is not None and self.candidates:
            raise ValueError("scale: got top and candidates, which are tops; give one of them")
        if self.by != "mse" and not self.candidates:
            raise ValueError(f"scale.by: got {self.by!r}, but no candidates=(6, 4) to choose among")
        if self.rounding != nearest_even and self.format == fp32:
            raise ValueError(
                f"scale.rounding: got {self.rounding} for fp32, which takes the quotient as it is; "
                f"give a narrower format, Scale(e8m0, rounding={self.rounding})"
            )
        if self.rule != "amax":
            self._check_power()
        if self.over is not None:
            self._check_over(self.over)

    def _candidates(self) -> tuple[float, ...]:
        if not isinstance(self.candidates, tuple):
            checks.refuse("scale.candidates", self.candidates, "a tuple of tops such as (6, 4)")
        return self.candidates

    def _check_power(self) -> None:
        if self.format.mantissa:
            raise ValueError(
                f"scale.rule: {self.rule!r} gives powers of two, got the format {self.format}; "
                f"give one without a mantissa, Scale(e8m0, rule={self.rule!r})"
            )
        for name, default in (("rounding", nearest_even), ("correction", None)):
            if getattr(self, name) != default:
                raise ValueError(
                    f"scale.{name}: got {getattr(self, name)}, but {self.rule!r} leaves nothing to "
                    f"round; leave it out, or give rule='amax'"
                )
        if self.rule != "rceil" and (self.top is not None or self.candidates):
            raise ValueError(
                f"scale.top: {self.rule!r} takes its exponent from the elements' format, and no "
                f"top or candidates; give rule='rceil' or 'amax' with them"
            )

    def _check_over(self, over: Scale) -> None:
        checks.instance("scale.over", over, Scale, "a Scale such as Scale(fp32, top=448)")
        if self.rule != "amax":
            raise ValueError(
                f"scale.over: got rule={self.rule!r}, whose powers of two need no second level; "
                f"give rule='amax' with the rounding you mean"
            )
        if over.top is None and self.format.largest > 2.0**48:
            raise ValueError(
                f"scale.over: got no top, and the largest inner scale of {self.format} is no aim; "
                f"give over=Scale({over.format}, top=...)"
            )
        plain = replace(
            over, prescale=1.0, candidates=(), by="mse", over=None, correction=None,
            reciprocal=False,
        )  # fmt: skip
        if plain != over or over.rule not in ("amax", "rceil"):
            raise ValueError(
                f"scale.over: got {over}; an outer scale has a format, rounding, headroom, top and "
                f"granularity, and the rules 'amax' and 'rceil'; the rest belongs to the inner one"
            )

    @property
    def simple(self) -> bool:
        """Whether elements are x / scale for one scale a granule, that follows from its range."""
        return (
            self.over is None
            and self.correction is None
            and not self.candidates
            and not self.reciprocal
            and self.prescale == 1
        )

    @property
    def outer(self) -> bool:
        """Whether there are outer scales, or a constant in their place."""
        return self.over is not None or self.prescale != 1

    @property
    def random_bits(self) -> int:
        """How many random bits a scale's rounding takes, at most; 0 where none is stochastic."""
        outer = 0 if self.over is None else self.over.random_bits
        return max(self.rounding.random_bits, outer)

    def tops(self, elements: Format) -> tuple[float, ...]:
        """What amax becomes, in elements of the format: one number, or the candidates."""
        return self.candidates or (self.top or elements.largest,)

    def check(self, elements: Format) -> None:
        """ValueError unless elements of this format can be scaled so."""
        if self.granularity != per_tensor:
            raise ValueError(
                f"scale.granularity: got {self.granularity}, which is for an outer scale, "
                f"Scale(e4m3, over=Scale(fp32, granularity=...)); the elements' own scale has the "
                f"quantizer's granularity"
            )
        if isinstance(elements, TableFormat) and self.rule != "amax":
            raise ValueError(
                f"scale.rule: got {self.rule!r} for {elements}, whose values have no exponents; "
                f"give rule='amax', amax over the largest magnitude of the table"
            )
        affine = isinstance(elements, IntFormat) and not elements.symmetric
        if affine and self != Scale(self.format, rounding=self.rounding):
            raise ValueError(
                f"scale: got {self} for {elements}, whose scale spreads low .. high over codes; "
                f"such a format takes a scale's format and rounding alone; give a symmetric one"
            )

    def __repr__(self) -> str:
        """What it was made with, defaults left out."""
        named = NAMED.get(self.format.name) == self.format
        parts = [self.format.name if named else repr(self.format)]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                shown = str(value) if isinstance(value, Rounding) else repr(value)
                parts.append(f"{field.name}={shown}")
        return f"Scale({', '.join(parts)})"

    def __str__(self) -> str:
        parts = [str(self.format)]
        if self.rule != "amax":
            parts.append(self.rule)
        if self.rounding != nearest_even:
            parts.append(str(self.rounding))
        if self.top is not None:
            parts.append(f"top {self.top:g}")
        if self.candidates:
            few = "/".join(f"{top:g}" for top in self.candidates[:3])
            tops = few if len(self.candidates) < 4 else f"of {len(self.candidates)} tops"
            parts.append(f"best {tops} by {self.by}")
        for name in ("headroom", "prescale"):
            if getattr(self, name) != 1:
                parts.append(f"{name} {getattr(self, name):g}")
        if self.correction is not None:
            parts.append(f"corrected in {self.correction}")
        if self.reciprocal:
            parts.append("reciprocal")
        if self.granularity != per_tensor:
            parts.append(str(self.granularity))
        if self.over is not None:
            parts.append(f"over {self.over}")
        return " ".join(parts)

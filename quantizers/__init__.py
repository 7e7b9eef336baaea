"""Number formats, rounding and quantizers: tensors in, tensors out, no global state."""

import types

from . import accumulators as accumulators
from . import kernels as kernels
from .accumulators import accumulate as accumulate
from .formats import FloatFormat as FloatFormat
from .formats import Format as Format
from .formats import IntFormat as IntFormat
from .formats import TableFormat as TableFormat
from .formats import bf16 as bf16
from .formats import dynamic8 as dynamic8
from .formats import e2m1 as e2m1
from .formats import e2m3 as e2m3
from .formats import e3m0 as e3m0
from .formats import e3m2 as e3m2
from .formats import e4m3 as e4m3
from .formats import e5m2 as e5m2
from .formats import e8m0 as e8m0
from .formats import fp16 as fp16
from .formats import fp32 as fp32
from .formats import int8 as int8
from .formats import nf4 as nf4
from .formats import tf32 as tf32
from .formats import udynamic8 as udynamic8
from .formats import uint8 as uint8
from .granularity import Granularity as Granularity
from .granularity import blocks as blocks
from .granularity import groups as groups
from .granularity import per_axis as per_axis
from .granularity import per_block as per_block
from .granularity import per_channel as per_channel
from .granularity import per_sample as per_sample
from .granularity import per_tensor as per_tensor
from .granularity import per_token as per_token
from .learned.clip import LearnedClip as LearnedClip
from .learned.lsq import LSQ as LSQ
from .learned.offset import LSQPlus as LSQPlus
from .learned.pact import PACT as PACT
from .noise import fold as fold
from .noise import random_bits as random_bits
from .noise import root_key as root_key
from .off import OFF as OFF
from .off import Off as Off
from .protocol import QuantizerLike as QuantizerLike
from .qtensor import QTensor as QTensor
from .quantizer import Quantizer as Quantizer
from .ranges.history import history as history
from .ranges.rules import RangeRule as RangeRule
from .ranges.rules import absmax as absmax
from .ranges.rules import chunked_minmax as chunked_minmax
from .ranges.rules import minmax as minmax
from .ranges.rules import percentile as percentile
from .ranges.rules import rms as rms
from .ranges.running import ema as ema
from .real_offset import RealOffset as RealOffset
from .rounding import Rounding as Rounding
from .rounding import ceil as ceil
from .rounding import floor as floor
from .rounding import half_away as half_away
from .rounding import nearest_even as nearest_even
from .rounding import round_to as round_to
from .rounding import round_to_float as round_to_float
from .rounding import stochastic as stochastic
from .rounding import toward_zero as toward_zero
from .scales.clipping import ClippingScaleWarning as ClippingScaleWarning
from .scales.scale import Scale as Scale
from .table_rounding import round_to_table as round_to_table

#: every name above, and no module they live in but two
__all__ = sorted(
    name
    for name, value in globals().items()
    if not name.startswith("_")
    and (name in ("accumulators", "kernels") or not isinstance(value, types.ModuleType))
)


def __dir__() -> list[str]:
    """The public names, without the modules they live in."""
    return __all__

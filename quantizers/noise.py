"""Counter-based random bits: a pure function of (key, logical element index).

Nothing is drawn from a generator, so a repeated, resumed or recomputed step sees the same noise,
and the noise of one tensor never depends on what else was rounded.

    lo, hi  = the low and the high 32 bits of the element's index in C order of the logical shape
    k0, k1  = the low and the high 32 bits of the key
    bits    = mix32(mix32(lo + k0) ^ (k1 + hi * 0x9E3779B1))        all modulo 2^32

mix32 is the two-multiplication xor-shift permutation "lowbias32" (C. Wellons, "Prospecting for
hash functions", 2018); keys are mixed with the finalizer of SplitMix64 (Steele et al., OOPSLA
2014).  Integer arithmetic wraps identically on every device, eager or compiled.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from . import checks, tensor_checks
from .devices.memory import serves
from .kernels.gpu import keys

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_BEYOND = 0x5851F42D4C957F2D


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _shifted(x: Tensor, places: int, bits: int) -> Tensor:
    """Logical right shift of a signed integer tensor (torch's own shift is arithmetic)."""
    return (x >> places).bitwise_and_((1 << (bits - places)) - 1)


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30, 64)) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ _shifted(x, 27, 64)) * _signed(0x94D049BB133111EB, 64)
    return x ^ _shifted(x, 31, 64)


def _mixed(x: int) -> int:
    """`_mix64` of an integer modulo 2^64."""
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _number(x: Tensor) -> ctypes.c_int64:
    """The one number of an int64 tensor in this process' memory."""
    return ctypes.c_int64.from_address(x.data_ptr())


def _mix32_(x: Tensor) -> Tensor:
    """In place, int32."""
    x.bitwise_xor_(_shifted(x, 16, 32)).mul_(0x7FEB352D)
    x.bitwise_xor_(_shifted(x, 15, 32)).mul_(_signed(0x846CA68B, 32))
    return x.bitwise_xor_(_shifted(x, 16, 32))


def fold(key: Tensor, value: int | Tensor, *, advance: bool = False) -> Tensor:
    """A new key from a key and an integer: fold(fold(k, a), b) differs for every (a, b).

    key: int64, any shape; value: an int or an int64 tensor -> int64, key's shape.
    advance: one is first added to the value, a tensor, in place.
    """
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        checks.refuse("key", key, "an int64 tensor: root_key(seed, ...) makes one")
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, Tensor) and value.dtype == torch.int64)
    ):
        checks.refuse("value", value, "an integer or an int64 tensor")
    if advance and not isinstance(value, Tensor):
        checks.refuse("value", value, "an int64 tensor, which is advanced")
    if isinstance(value, Tensor) and value.dim() and value.shape != key.shape:
        raise ValueError(f"value: got {checks.shown(value)}, need key's shape {tuple(key.shape)}")
    made = keys.fold(key, value, advance) if key.is_cuda else None
    if made is not None:
        return made
    one = not key.dim() and (isinstance(value, int) or not value.dim())
    if one and (serves(key) if isinstance(value, int) else serves(key, value)):
        # the same, without a dozen operations on one number
        if isinstance(value, int):
            other = value
        else:
            place = _number(value)
            place.value += advance
            other = place.value
        mixed = _mixed((_mixed(other + _GOLDEN) ^ (_number(key).value & _MASK)) + _GOLDEN)
        made = torch.empty_like(key)
        _number(made).value = mixed  # modulo 2^64
        return made
    if advance and isinstance(value, Tensor):
        value.add_(1)
    if isinstance(value, int):
        value = torch.full_like(key, _signed(value, 64))
    return _mix64((_mix64(value + _signed(_GOLDEN, 64)) ^ key) + _signed(_GOLDEN, 64))


def root_key(*parts: int) -> Tensor:
    """A key, 0-d int64 on the CPU, from integers such as (seed, stream), of any size and sign.

    One beyond int64, which `fold` takes modulo 2^64, is folded in pieces of 32 bits after a mark.
    """
    key = torch.zeros((), dtype=torch.int64, device="cpu")
    for part in parts:
        checks.integer("parts", part)
        if -(1 << 63) <= part < 1 << 63:
            key = fold(key, part)
            continue
        key = fold(fold(key, _BEYOND), int(part < 0))
        for place in range(0, part.bit_length(), 32):
            key = fold(key, (abs(part) >> place) & 0xFFFFFFFF)
    return key


def needed(key: Tensor | None, what: str) -> Tensor:
    """The key; ValueError where there is none, with what to write."""
    if key is None:
        raise ValueError(
            f"{what} needs a key: pass key=root_key(seed, step), of quantizers, another one at "
            f"each call; equal keys give equal noise"
        )
    return key


def random_bits(key: Tensor, shape: tuple[int, ...] | torch.Size, *, start: int = 0) -> Tensor:
    """32 random bits an element.  key: 0-d int64 -> int32 of `shape`, on the key's device.

    start: the index of the first element (tests reach 2^31 and 2^32 without the memory).
    """
    tensor_checks.key(key)
    count = math.prod(tensor_checks.shape("shape", shape))
    checks.integer("start", start, low=0, high=2**63 - 1 - count)
    low_key, high_key = key.to(torch.int32), (key >> 32).to(torch.int32)
    if start + count <= 2**31:
        low = torch.arange(start, start + count, dtype=torch.int32, device=key.device)
        high: Tensor | int = 0
    else:
        index = torch.arange(start, start + count, dtype=torch.int64, device=key.device)
        low, high = index.to(torch.int32), (index >> 32).to(torch.int32)
    bits = _mix32_(low.add_(low_key))
    bits = _mix32_(bits.bitwise_xor_(high_key + high * _signed(0x9E3779B1, 32)))
    return bits.view(tuple(shape))


def uniform_integers(bits: Tensor, count: int) -> Tensor:
    """The top `count` (1..31) of 32 random bits as an integer 0 .. 2^count - 1.  int32 -> int32."""
    return _shifted(bits, 32 - count, 32)

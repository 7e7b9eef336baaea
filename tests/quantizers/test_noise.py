"""Noise as a function: the same bits however computed, and bits that look random."""

import numpy as np
import pytest
import reference
import torch
from quantizer_checks import compiled, needs_cuda, same_bits
from torch import Tensor

from quantizers import Quantizer, fold, int8, kernels, random_bits, root_key, stochastic
from quantizers.noise import uniform_integers

STARTS = [0, 5, 2**31 - 3, 2**31, 2**32 - 3, 2**32, 2**40 + 17]
MASK = 2**64 - 1


def as_int(key: Tensor) -> int:
    return int(key.item()) & MASK


def uniform(key: Tensor, *shape: int) -> Tensor:
    """fp64 in (0, 1)."""
    return (random_bits(key, shape).double() + 2**31 + 0.5) / 2**32


@pytest.mark.parametrize("value", [0, 1, -1, 2**31, 2**62 + 3, -(2**63)])
def test_fold_equals_the_reference(value: int) -> None:
    for start in (0, 1, 2**63 - 1, -5):
        key = torch.tensor(start, dtype=torch.int64)
        expected = reference.fold(start & MASK, value & MASK)
        assert as_int(fold(key, value)) == expected
        assert as_int(fold(key, torch.tensor(value))) == expected
    assert as_int(root_key(3, value)) == reference.fold(reference.fold(0, 3), value & MASK)


@pytest.mark.filterwarnings("ignore")  # torch's own deprecations, in its tracer
def test_fold_has_one_result_however_it_is_computed() -> None:
    """By Python's integers, by torch's operations, compiled, on every number of keys at once."""
    edges = [0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1]
    values = [*edges, *(-v for v in edges), -(2**63)]
    values += [as_int(fold(root_key(1), i)) - 2**63 for i in range(12)]
    fast = compiled(lambda key, value: fold(fold(key, value), 7))
    for i, start in enumerate(values):
        key = torch.tensor(start)
        everyone = torch.tensor(values)
        by_reference = [reference.fold(start & MASK, value & MASK) for value in values]
        assert [as_int(fold(key, value)) for value in values] == by_reference
        assert [as_int(fold(key, value)) for value in everyone] == by_reference
        with kernels.eager():  # torch's operations
            assert [as_int(fold(key, value)) for value in values[:8]] == by_reference[:8]
            assert [as_int(fold(key, value)) for value in everyone[:8]] == by_reference[:8]
        keys = fold(key.expand(len(values)), everyone)
        assert [k & MASK for k in keys.tolist()] == by_reference
        for value in (2**63, 2**64 - 1, 2**64 + 3, -(2**64) - 1, 2**100):  # modulo 2^64
            expected = reference.fold(start & MASK, value & MASK)
            assert as_int(fold(key, value)) == expected
            with kernels.eager():
                assert as_int(fold(key, value)) == expected
        if i % 9 == 0:
            assert as_int(fast(key, everyone[i])) == as_int(fold(fold(key, values[i]), 7))


def test_no_two_seeds_are_one_stream() -> None:
    """Of any size and sign: fold alone takes an integer modulo 2^64."""
    seeds = [0, 1, 5, 2**31, 2**32, 2**32 + 5, 2**63 - 1, 2**63, 2**64, 2**64 + 5, 2**96, 2**100]
    seeds = [*seeds, *(-seed for seed in seeds if seed), 2**64 - 1, -(2**63) - 1, 2**128 + 2**64]
    assert len({as_int(root_key(seed)) for seed in seeds}) == len(seeds) == len(set(seeds))
    assert as_int(root_key(2**64 + 5)) != as_int(root_key(5, 1))
    for seed in (0, 7, -7, 2**63 - 1, -(2**63)):  # those of 64 bits are what they were
        assert as_int(root_key(seed)) == reference.fold(0, seed & MASK)


def test_fold_of_keys_that_are_not_numbers_in_memory() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    key, count = root_key(5), torch.tensor(-3)
    expected = as_int(fold(key, -3))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(key)
        for value in (3, -(2**63), mode.from_tensor(count)):
            folded = fold(fake, value)
            assert type(folded).__name__ == "FakeTensor"
            assert folded.shape == () and folded.dtype == torch.int64
    with FlopCounterMode(display=False):
        assert as_int(fold(key, count)) == expected
    assert fold(key.to("meta"), 3).is_meta
    with torch.device("meta"):  # a default for new tensors alone
        assert as_int(fold(key, count)) == expected == as_int(fold(key, -3))
    within = torch.tensor([1, key.item(), 2])[1]  # a view, past the start of its memory
    assert within.storage_offset() == 1 and as_int(fold(within, count)) == expected
    many = torch.func.vmap(lambda k: fold(k, 4))(torch.stack([key, count]))
    assert [k & MASK for k in many.tolist()] == [as_int(fold(key, 4)), as_int(fold(count, 4))]
    key.add_(1)  # what is read is the number of now
    assert as_int(fold(key, -3)) == reference.fold(as_int(key), -3 & MASK) != expected


@pytest.mark.parametrize("start", STARTS)
def test_random_bits_equal_the_reference_also_past_2_to_the_32(start: int) -> None:
    for key in (root_key(0), root_key(1, 2, 3), torch.tensor(-1), torch.tensor(0)):
        bits = random_bits(key, (6,), start=start)
        expected = [reference.random_bits(as_int(key), start + i) for i in range(6)]
        assert (bits.long() & 0xFFFFFFFF).tolist() == expected


def test_bits_depend_on_the_index_alone_not_on_the_shape() -> None:
    key = root_key(4)
    flat = random_bits(key, (24,))
    assert torch.equal(random_bits(key, (2, 3, 4)), flat.view(2, 3, 4))
    assert torch.equal(random_bits(key, (5,), start=3), flat[3:8])
    assert random_bits(key, ()).shape == ()
    assert random_bits(key, (0, 3)).shape == (0, 3)
    assert same_bits(random_bits(key, ()).view(1), flat[:1])


def test_compiled_bits_equal_eager() -> None:
    def both(key: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        folded = fold(fold(key, 11), count)
        return random_bits(folded, (64, 65)), random_bits(folded, (9,), start=2**32 - 4)

    fast = compiled(both)
    for seed in (0, 1):
        args = root_key(seed), torch.tensor(seed)
        for got, expected in zip(fast(*args), both(*args), strict=True):
            assert same_bits(got, expected)


def test_channels_last_and_strided_tensors_see_the_noise_of_their_logical_index() -> None:
    x = torch.linspace(-3, 3, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    quantizer = Quantizer(format=int8, rounding=stochastic())
    expected = quantizer(x, key=root_key(1)).elements
    last = x.contiguous(memory_format=torch.channels_last)
    strided = x.transpose(0, 3).contiguous().transpose(0, 3)
    assert same_bits(quantizer(last, key=root_key(1)).elements, expected)
    assert same_bits(quantizer(strided, key=root_key(1)).elements, expected)


def test_nothing_is_taken_from_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Quantizer(format=int8, rounding=stochastic())(torch.ones(9), key=root_key(1))
    assert torch.equal(torch.get_rng_state(), before)
    first = random_bits(root_key(5), (8,))
    torch.manual_seed(1)
    assert torch.equal(random_bits(root_key(5), (8,)), first)


def test_uniform_residual() -> None:
    n = 2**20
    u = uniform(root_key(2), n).sort().values
    rank = torch.arange(1, n + 1).double() / n
    distance = torch.maximum((rank - u).abs().max(), (u - rank + 1 / n).abs().max()).item()
    assert distance * n**0.5 < 1.95  # Kolmogorov-Smirnov, n = 2^20, p = 0.001


def test_the_residual_of_a_rounding_is_uniform_given_the_fraction() -> None:
    # error of SR at fraction f is -f or 1 - f: its mean over uniform f is 0, its variance 1/6
    n = 2**20
    x = uniform(root_key(3), n).float() * 100
    error = (stochastic()(x, random_bits(root_key(4), (n,))) - x).double()
    assert abs(error.mean().item()) < 5 * (1 / 6 / n) ** 0.5  # 5 sigma
    assert abs(error.var().item() - 1 / 6) < 5 * (1 / 6) / n**0.5


def test_every_bit_is_balanced() -> None:
    n = 2**20
    bits = random_bits(root_key(6), (n,))
    for place in range(32):
        mean = ((bits >> place) & 1).double().mean().item()
        assert abs(mean - 0.5) < 5 * 0.5 / n**0.5, place  # 5 sigma


def test_no_correlation_along_any_axis() -> None:
    u = uniform(root_key(7), 32, 64, 512) - 0.5
    for axis, size in enumerate(u.shape):
        for lag in (1, 2, 3, 4, 8, 16, 31):
            left, right = u.narrow(axis, 0, size - lag), u.narrow(axis, lag, size - lag)
            r = (left * right).mean().item() * 12
            assert abs(r) < 5 / left.numel() ** 0.5, (axis, lag)  # 5 sigma
    for axis in range(3):
        rest = [a for a in range(3) if a != axis]
        z = u.mean(rest) * (12 * u.numel() / u.shape[axis]) ** 0.5
        assert z.abs().max().item() < 5, axis  # slice means, 5 sigma


def test_no_correlation_between_layers_roles_and_counts() -> None:
    n = 4096
    keys = [
        fold(fold(fold(root_key(0), layer), role), count)
        for layer in range(8)
        for role in range(6)
        for count in (0, 1, 2, 1000)
    ]
    assert len({as_int(key) for key in keys}) == len(keys)
    u = torch.stack([uniform(key, n) for key in keys]) - 0.5
    r = (u @ u.T) * 12 / n
    r.fill_diagonal_(0)
    assert r.abs().max().item() < 6 / n**0.5  # 18336 pairs, 6 sigma
    # nor is one key's noise another's, shifted
    spectrum = torch.fft.rfft(u)
    for other in range(1, len(keys)):
        shifted = torch.fft.irfft(spectrum[0] * spectrum[other].conj()) * 12 / n
        assert shifted.abs().max().item() < 7 / n**0.5


def test_flipping_one_bit_of_index_or_key_flips_half_of_the_bits() -> None:
    n = 4096
    words = (uniform(root_key(9), n) * 2**30).long()

    def of(key: int, index: int) -> int:
        return reference.random_bits(key, index)

    place = np.arange(32, dtype=np.uint64)
    for bit in (0, 1, 7, 15, 16, 29, 31, 32, 33):  # index bits, past 2^32 too
        key = as_int(root_key(10))
        flips = [of(key, w) ^ of(key, w ^ (1 << bit)) for w in words[:1024].tolist()]
        share = ((np.array(flips, dtype=np.uint64)[:, None] >> place) & 1).mean(0)
        # n=1024: 6 sigma, and 0.02 for lowbias32's own bias
        assert np.abs(share - 0.5).max() < 6 * 0.5 / 1024**0.5 + 0.02, bit
    keys = torch.stack([fold(root_key(11), int(w)) for w in words[:64].tolist()])
    for bit in range(0, 64, 3):
        other = keys ^ (1 << bit if bit < 63 else -(2**63))
        flips = torch.stack(
            [
                random_bits(a, (64,)) ^ random_bits(b, (64,))
                for a, b in zip(keys, other, strict=True)
            ]
        )
        share = torch.stack([((flips >> p) & 1).double().mean() for p in range(32)])
        assert (share - 0.5).abs().max().item() < 6 * 0.5 / n**0.5 + 0.02, bit


def test_uniform_integers_are_the_top_bits() -> None:
    bits = random_bits(root_key(12), (1000,))
    for count in (1, 8, 23, 31):
        expected = (bits.long() & 0xFFFFFFFF) >> (32 - count)
        assert torch.equal(uniform_integers(bits, count).long(), expected)


@needs_cuda
def test_cuda_bits_equal_cpu() -> None:
    key = fold(root_key(1, 2), 3)
    assert as_int(fold(root_key(1, 2).cuda(), 3)) == as_int(key)
    for start in STARTS:
        on_gpu = random_bits(key.cuda(), (1001,), start=start)
        assert same_bits(on_gpu, random_bits(key, (1001,), start=start))

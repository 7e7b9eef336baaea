"""Tilings against explicit loops."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizers import (
    Granularity,
    blocks,
    per_axis,
    per_block,
    per_sample,
    per_tensor,
    per_token,
)
from quantizers.granularity import blocked, compact_shape, expand, is_plain

SHAPES = st.lists(st.integers(0, 7), min_size=0, max_size=4)
SIZES = st.lists(st.integers(1, 9), min_size=4, max_size=4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SHAPES, SIZES, st.integers(0, 15), st.sampled_from(["whole", "each"]))
def test_blocks_equal_the_loops(shape: list, sizes: list, named: int, rest: str) -> None:
    pairs = tuple((a, sizes[a]) for a in range(len(shape)) if named >> a & 1)
    block = Granularity(pairs, rest).block_shape(shape)
    assert list(block) == reference.block_sizes(pairs, rest, shape)
    compact = compact_shape(shape, block)
    tiles = list(reference.blocks(shape, block))
    assert len(tiles) == torch.Size(compact).numel()
    numbers = torch.arange(len(tiles)).view(compact)
    spread = expand(numbers, shape, block).broadcast_to(shape)
    expected = torch.full(shape, -1)
    for position, indices in tiles:
        for index in indices:
            expected[index] = numbers[position]
    assert torch.equal(spread, expected)
    uncut = [b == 1 or b >= n for b, n in zip(block, shape, strict=True)]
    assert is_plain(shape, block) == all(uncut)
    if 0 not in shape:
        view, inner = blocked(expected, block)
        assert bool((view.amax(inner) == numbers).all() and (view.amin(inner) == numbers).all())


@pytest.mark.parametrize(
    ("granularity", "block", "text"),
    [
        (per_tensor, (8, 64, 5, 40), "per tensor"),
        (per_sample, (1, 64, 5, 40), "per axis 0"),
        (per_axis(0, 1), (1, 1, 5, 40), "per axis 0,1"),
        (per_axis(-1), (8, 64, 5, 1), "per axis -1"),
        (per_token, (1, 1, 1, 40), "blocks -1:all"),
        (Granularity(((-1, 32),), rest="each"), (1, 1, 1, 32), "blocks -1:32"),
        (Granularity(((1, 16), (3, 16)), rest="each"), (1, 16, 1, 16), "blocks 1:16,3:16"),
        (Granularity(((0, 32), (1, 32)), rest="each"), (8, 32, 1, 1), "blocks 0:32,1:32"),
    ],
    ids=str,
)
def test_named_granularities(granularity: Granularity, block: tuple, text: str) -> None:
    assert granularity.block_shape((8, 64, 5, 40)) == block
    assert str(granularity) == text


def test_blocks_of_a_matrix_and_how_they_were_spelled() -> None:
    assert blocks(32).block_shape((3, 5, 64)) == (1, 1, 32)
    assert blocks(16, 8).block_shape((3, 50, 64)) == (1, 8, 16)
    assert blocks(None).block_shape((3, 5, 64)) == (1, 1, 64)
    assert blocks(16, 16).square and blocks(None, 1).square is False and not blocks(32).square
    with pytest.warns(DeprecationWarning, match=r"per_block is deprecated; give blocks\(32\)"):
        old = per_block({-1: 32})
    assert old == Granularity(((-1, 32),), rest="each")
    with pytest.raises(TypeError, match="sizes"):
        per_block(32)  # type: ignore[arg-type]


def test_an_axis_of_unknown_size_may_be_whole_and_not_cut() -> None:
    assert per_axis(1).block_shape((None, 3, None)) == (1, 1, 1)
    for granularity in (per_sample, Granularity(((1, 2),), rest="each"), per_token):
        with pytest.raises(ValueError, match="changes from batch to batch"):
            granularity.block_shape((None, 3))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: per_axis(0, 0), "named twice"),
        (lambda: per_axis(1.5), "axis"),
        (lambda: per_axis(True), "axis"),
        (lambda: Granularity(((0, 0),), rest="each"), "block size"),
        (lambda: Granularity(((0, 2.0),), rest="each"), "block size"),
        (lambda: Granularity(rest="all"), "rest"),
        (lambda: per_axis(2).block_shape((3, 4)), "2 axes"),
        (lambda: per_axis(0).block_shape(()), "0 axes"),
        (lambda: per_axis(1, -1).block_shape((3, 4)), "twice"),
    ],
)
def test_bad_granularities_are_refused(make, word: str) -> None:
    with pytest.raises((TypeError, ValueError), match=word):
        make()

from __future__ import annotations

import gzip
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_cases import sentences, write_text
from torch import Tensor

from qtrain import data, models
from qtrain.data import draws

TEXT = sentences(3000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text(tmp_path / "a.txt", 3000)
    return tmp_path


def decoded(tokens: Tensor, classes: tuple[str, ...]) -> str:
    return "".join(classes[i] for i in tokens.flatten().tolist())


def windows(split: Any, **arguments: Any) -> tuple[Tensor, Tensor]:
    """All inputs and targets of an epoch, in the order of the text."""
    batches = data.Batches(split, batch_size=7, **arguments)
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    order = torch.from_numpy(np.concatenate(batches.indices())).argsort()
    return inputs[order], targets[order]


def test_the_vocabulary_is_the_sorted_characters_and_the_last_tenth_the_test_part(
    folder: Path,
) -> None:
    text = data.load("text", data_dir=folder, context=16)
    assert text.classes == tuple(sorted(set(TEXT)))
    assert text.sizes == {"num_classes": len(set(TEXT)), "context": 16}
    cut = len(TEXT) - len(TEXT) // 10
    assert decoded(text.train.tokens, text.classes) == TEXT[:cut]
    assert decoded(text.test.tokens, text.classes) == TEXT[cut:]
    assert data.load("text", data_dir=folder).sizes["context"] == 128


@pytest.mark.parametrize("characters", [2010, 2019, 2020])
def test_test_windows_follow_one_another_and_targets_are_the_next_characters(
    tmp_path: Path, characters: int
) -> None:
    whole = TEXT[:characters]
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    text = data.load("text", data_dir=tmp_path / "a.txt", context=10)
    inputs, targets = windows(text.test, train=False)
    part = whole[len(whole) - len(whole) // 10 :]
    count = (len(part) - 1) // 10
    assert inputs.shape == targets.shape == (count, 10)
    assert inputs.dtype == targets.dtype == torch.int64
    assert decoded(inputs, text.classes) == part[: 10 * count]
    assert decoded(targets, text.classes) == part[1 : 10 * count + 1]


def test_an_epoch_of_training_cuts_the_text_from_an_offset_of_its_own(folder: Path) -> None:
    text = data.load("text", data_dir=folder, context=16)
    whole = decoded(text.train.tokens, text.classes)
    found = set()
    for epoch in range(200):
        inputs, targets = windows(text.train, seed=3, epoch=epoch)
        offset = whole.index(decoded(inputs, text.classes))
        assert inputs.shape == (len(text.train), 16)
        assert decoded(targets, text.classes) == whole[offset + 1 :][: inputs.numel()]
        found.add(offset)
    assert found == set(range(16))  # 200 draws miss one of 16 with a chance of 4e-5
    plain, _ = windows(text.train, seed=3, augment=False)
    assert whole.startswith(decoded(plain, text.classes))
    # as many windows as every offset leaves room for, and no more
    assert 15 + 16 * len(text.train) + 1 <= len(whole) < 15 + 16 * (len(text.train) + 1) + 1


def test_windows_come_shuffled_each_once_and_resume_anywhere(folder: Path) -> None:
    split = data.load("text", data_dir=folder, context=16).train
    whole = list(data.Batches(split, batch_size=20, seed=1, epoch=2))
    for start in range(len(whole) + 1):
        rest = list(data.Batches(split, batch_size=20, seed=1, epoch=2, start=start))
        for a, b in zip(whole[start:], rest, strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    first = [torch.cat([x for x, _ in data.Batches(split, batch_size=20, seed=s)]) for s in (0, 1)]
    assert not torch.equal(*first)
    ranks = [
        torch.cat([x for x, _ in data.Batches(split, batch_size=10, seed=1, rank=r, world_size=2,
                                              drop_last=True)])
        for r in (0, 1)
    ]  # fmt: skip
    alone = data.Batches(split, batch_size=20, seed=1, drop_last=True)
    rows = lambda parts: sorted(torch.cat(parts).tolist())  # noqa: E731
    assert rows(ranks) == rows([x for x, _ in alone])


def test_offsets_never_change() -> None:
    zero = np.zeros(1, dtype=np.int64)
    found = [
        int(draws.below(128, zero, seed=seed, epoch=epoch, purpose=draws.OFFSET)[0])
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert found == [97, 125, 59]


def test_files_are_joined_in_sorted_order_compressed_or_not(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"zweite\r\n" * 200)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("first é\n".encode() * 200))
    (tmp_path / "c.TXT").write_bytes("\ufeffthird 文".encode())
    (tmp_path / ".d.txt").write_bytes(b"\xff")
    (tmp_path / "e.md").write_bytes(b"\xff")
    text = data.load("text", data_dir=tmp_path, context=8)
    expected = "first é\n" * 200 + "zweite\r\n" * 200 + "third 文"
    tokens = torch.cat([text.train.tokens, text.test.tokens])
    assert decoded(tokens, text.classes) == expected
    alone = data.load("text", data_dir=tmp_path / "a.txt.gz", context=8)
    assert alone.classes == tuple(sorted("first é\n"))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: (p / "a.txt").unlink(), "holds no text; need one or more UTF-8 files"),
    (lambda p: (p / "b.txt").write_bytes(b""), r"b\.txt: is empty; fill or remove it"),
    (lambda p: (p / "b.txt").write_bytes(b"caf\xe9 au lait"), r"b\.txt: not UTF-8 .*byte 3.*iconv"),
    (lambda p: (p / "b.txt.gz").write_bytes(b"plain"), r"b\.txt\.gz: cannot be read .*replace"),
    (lambda p: (p / "b.txt.gz").write_bytes(gzip.compress(b"x" * 99)[:-9]), "cannot be read"),
    (lambda p: (p / "b.txt").mkdir(), r"b\.txt: cannot be read"),
    (
        lambda p: (p / "a.txt").write_text("x" * 329),
        r"holds 329 characters, need at least 330 for a context of 16; add text or choose a small",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_text_is_named_with_what_to_do(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(data.DataError, match=message):
        data.load("text", data_dir=folder, context=16)


@pytest.mark.parametrize("place", ["", "b.txt"], ids=["in a folder", "alone"])
def test_a_pipe_is_refused_and_not_waited_for(folder: Path, place: str) -> None:
    os.mkfifo(folder / "b.txt")
    holder = os.open(folder / "b.txt", os.O_RDWR)  # lest a reader waits
    os.write(holder, b"x" * 1000)
    try:
        signal.setitimer(signal.ITIMER_REAL, 20)  # ends the test's process where one waits
        with pytest.raises(data.DataError, match=r"b\.txt: cannot be read \(it is no file\)"):
            data.load("text", data_dir=folder / place, context=16)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.close(holder)


def test_the_shortest_text_has_two_test_windows(folder: Path) -> None:
    (folder / "a.txt").write_text(TEXT[:330], encoding="utf-8")
    text = data.load("text", data_dir=folder, context=16)
    assert len(text.test) == 2 and len(text.train) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 1}, "context: got 1, need an integer from 2 to 65536"),
        ({"context": 65537}, "context: got 65537"),
        ({"context": True}, "context: got True"),
        ({"context": 8.0}, "context: got 8.0"),
        ({"image_size": 32}, "image_size: got 32, but text holds text, not images"),
        ({"cache_dir": "."}, "cache_dir.*needs no decoding"),
        ({"data_dir": None}, "text: no folder or file given"),
        ({"data_dir": "/no/such/place"}, "looked for the folder or file /no/such/place"),
        ({"data_dir": __file__}, "test_text.py is no text file by its name"),
    ],
)
def test_settings_that_text_cannot_honour_are_refused(
    folder: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        data.load("text", **{"data_dir": folder, **arguments})


def test_wrong_tokens_of_a_split_are_refused() -> None:
    good = torch.arange(9, dtype=torch.int32)
    for tokens, message in [
        (good.long(), r"int64, need \(L,\) int32"),
        (good[None], "tokens are"),
        (good[:4], "hold no window of 4"),
        (good - 1, "token -1 is out of range"),
        (good + 1, r"token 9 is out of range, need 0\.\.8"),
    ]:
        with pytest.raises(data.DataError, match=message):
            data.TextSplit(tokens=tokens, num_classes=9, context=4)


def test_a_model_is_built_from_the_sizes_of_its_data(folder: Path) -> None:
    for name, dataset in [
        ("chartransformer", data.load("text", data_dir=folder, context=16)),
        ("resnet20", data.load("digits")),
    ]:
        model = models.get(name, **dataset.sizes).eval()
        inputs, targets = next(iter(data.Batches(dataset.test, batch_size=2, train=False)))
        assert model(inputs).shape == (*targets.shape, dataset.num_classes)

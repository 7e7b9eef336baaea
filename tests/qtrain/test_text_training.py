"""`qtrain train` on text: the loss per token, the gap over windows, checkpoints, inspection."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from text_cases import write_text
from torch import Tensor
from training_cases import assert_same_run, lines, quiet, small

from qtrain import data, inspect, models
from qtrain.cli import main
from qtrain.training.checkpoint import CheckpointError
from qtrain.training.config import TrainConfig
from qtrain.training.intervals import accuracy_gap, mean_difference
from qtrain.training.nonfinite import NonFiniteError
from qtrain.training.train import build_branches, load_data, restored, train
from qtrain.training.trainee import Branch


@pytest.fixture(scope="module", autouse=True)
def tiny_models() -> Iterator[None]:
    """Models of text by name, but narrow: what is tested is the run."""
    patch = pytest.MonkeyPatch()
    patch.setattr(models.CharTransformer.__init__, "__kwdefaults__", {
        **models.CharTransformer.__init__.__kwdefaults__, "width": 16, "depth": 1, "dropout": 0.1,
    })  # fmt: skip
    yield
    patch.undo()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "a.txt", 3000)


def run_of(text: Path, runs: Path, **changes: Any) -> TrainConfig:
    """Two epochs of 10 steps of 16 windows."""
    base: dict[str, Any] = {
        "model": "chartransformer", "data": "text", "data_dir": str(text), "context": 16,
        "batch_size": 16, "optimizer": "adamw", "lr": 1e-2,
    }  # fmt: skip
    return small(runs, **{**base, **changes})


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(run_of(text, tmp_path_factory.mktemp("runs")), say=quiet)


def test_a_run_on_text_learns_and_leaves_all_files(finished: Any) -> None:
    assert {path.name for path in finished.folder.path.iterdir()} == {
        "checkpoint.pt", "config.json", "environment.json", "metrics.jsonl", "summary.json",
        "report.txt", "curves.png", "errors.json", "errors.csv", "errors.png", ".lock",
        "metrics.csv", "report.html",
    }  # fmt: skip
    first = lines(finished.folder.metrics)[0]
    characters = len(load_data(finished.config).classes)
    assert first["loss"] == pytest.approx(torch.tensor(characters).log().item(), abs=0.2)
    for line in finished.epochs[2:]:  # the mean over tokens, not over windows or batches
        assert line["test_loss"] < 0.9 * first["loss"] and line["test_accuracy"] > 0.15
    layers = {row.layer for row in finished.report.rows}
    assert {"fc", "blocks.0.qkv", "blocks.0.attention.scores", "blocks.0.fc2"} <= layers


def test_loss_and_accuracy_are_means_over_all_test_tokens(finished: Any) -> None:
    dataset = load_data(finished.config)
    model = finished.models["baseline"].eval()
    losses, right = [], []
    for i in range(len(dataset.test)):
        at = i * 16
        inputs = dataset.test.tokens[None, at : at + 16].long()
        targets = dataset.test.tokens[at + 1 : at + 17].long()
        with torch.no_grad():
            logits = model(inputs)[0]
        losses += (-logits.log_softmax(-1)[torch.arange(16), targets]).tolist()
        right += (logits.argmax(-1) == targets).tolist()
    line = finished.epochs[-2]
    assert line["branch"] == "baseline"
    assert line["test_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert line["test_accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-12)
    assert len(losses) == 16 * ((3000 // 10 - 1) // 16)


def test_the_gap_is_paired_over_test_windows(finished: Any) -> None:
    gap = finished.gap
    assert gap.method == "paired over test windows, Student t" and gap.n == (3000 // 10 - 1) // 16
    difference = finished.accuracy["quantized"] - finished.accuracy["baseline"]
    assert gap.value == pytest.approx(difference, abs=1e-12)
    assert gap.low <= gap.value <= gap.high
    assert "paired over test windows" in str(finished)


@pytest.mark.parametrize("dies", [7, 12, 31], ids="call {}".format)
def test_a_run_on_text_that_died_resumes_bit_for_bit(
    finished: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: int
) -> None:
    step, calls = Branch.step, 0

    def die(self: Branch, inputs: Tensor, targets: Tensor, **options: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == dies:
            raise KeyboardInterrupt
        return step(self, inputs, targets, **options)

    monkeypatch.setattr(Branch, "step", die)
    with pytest.raises(KeyboardInterrupt):
        train(run_of(text, tmp_path, checkpoint_every=3), say=quiet)
    train(run_of(text, tmp_path, checkpoint_every=3, resume=True), say=quiet)
    assert_same_run(tmp_path / "run", finished.folder.path)


def test_another_context_cannot_resume(finished: Any, text: Path) -> None:
    runs = finished.folder.path.parent
    with pytest.raises(ValueError, match=r"context \(stored 16, now 8\)"):
        train(run_of(text, runs, context=8, resume=True), say=quiet)


def swapped(text: Path, place: Path) -> Path:
    """The text with the two letters exchanged that occur most: as many tokens, sizes and windows,
    and the same characters."""
    place.write_text(text.read_text("utf-8").translate(str.maketrans("et", "te")), "utf-8")
    return place


def test_another_text_of_the_same_sizes_neither_resumes_nor_is_inspected(
    text: Path, tmp_path: Path, finished: Any
) -> None:
    folder = finished.folder.path
    shutil.copytree(folder, tmp_path / "run")
    other = swapped(text, tmp_path / "other.txt")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    message = rf"of a run on other data: .*was {text}.*that of {other} is .*--data-dir"
    with pytest.raises(CheckpointError, match=message):
        train(run_of(other, tmp_path, resume=True), say=quiet)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    stored = tmp_path / "run" / "checkpoint.pt"
    for wrong in (other, write_text(tmp_path / "longer.txt", 4000)):
        with pytest.raises(CheckpointError, match="of a run on other data"):
            restored(stored, data_dir=str(wrong)).__enter__()
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text.read_bytes())
    with restored(stored, data_dir=str(moved)) as batch:
        assert inspect(*batch).rows


def test_a_checkpoint_of_a_version_without_fingerprints_resumes(
    text: Path, tmp_path: Path, finished: Any
) -> None:
    shutil.copytree(finished.folder.path, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["data"]
    torch.save(content, path)
    train(run_of(text, tmp_path, resume=True), say=quiet)
    with restored(path) as batch:
        assert inspect(*batch).rows


def test_a_fingerprint_is_of_what_is_learned_not_of_where_it_lies(
    text: Path, tmp_path: Path
) -> None:
    def of(place: Path, context: int = 16) -> str:
        return data.load("text", data_dir=place, context=context).fingerprint()

    (tmp_path / "copy.txt").write_bytes(text.read_bytes())
    assert of(text) == of(tmp_path / "copy.txt") == of(text, context=8)
    (tmp_path / "end.txt").write_bytes(text.read_bytes()[:-1] + b"t")  # the last character
    (tmp_path / "renamed.txt").write_text(text.read_text("utf-8").replace("ï", "ö"), "utf-8")
    others = [swapped(text, tmp_path / "s.txt"), tmp_path / "end.txt", tmp_path / "renamed.txt"]
    assert len({of(text), *map(of, others)}) == 4


def test_a_checkpoint_of_text_is_inspected(finished: Any) -> None:
    path = finished.folder.checkpoint
    with restored(path) as batch:
        report = inspect(*batch)
    assert [row.layer for row in report.rows] == [row.layer for row in finished.report.rows]
    assert all(row.sqnr_db > 10 for row in report.rows if row.role in ("input", "weight"))


def test_the_lstm_trains_and_every_product_of_it_has_rows(text: Path, tmp_path: Path) -> None:
    result = train(run_of(text, tmp_path, model="charlstm", epochs=1), say=quiet)
    layers = {row.layer for row in result.report.rows}  # type: ignore[union-attr]
    assert layers == {"fc", "lstm.ih_l0", "lstm.hh_l0"}


def test_off_on_text_is_exactly_the_baseline(text: Path, tmp_path: Path) -> None:
    config = run_of(text, tmp_path, recipe="fp32", baseline=True)  # dropout is the same, too
    log = [{k: v for k, v in line.items() if k != "branch"}
           for line in lines(train(config, say=quiet).folder.metrics)]  # fmt: skip
    assert log[0::2] == log[1::2]


def test_a_nan_of_a_model_of_text_is_named(text: Path, tmp_path: Path) -> None:
    config = run_of(text, tmp_path)
    branch = build_branches(config, load_data(config), torch.device("cpu"))[1]
    with torch.no_grad():
        branch.model.get_parameter("blocks.0.fc1.weight")[0, 0] = float("nan")
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    with pytest.raises(NonFiniteError, match="stopped at step 3") as error:
        branch.step(tokens, tokens, step=3, rate=0.1)
    assert (error.value.layer, error.value.role) == ("blocks.0.fc1", "weight")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"data": "text"},
            "got 'resnet18', but data 'text' holds text.* charlstm, chartransformer",
        ),
        ({"model": "charlstm"}, "got 'charlstm', but data 'digits' holds images.* mlp, resnet18"),
    ],
    ids=["text", "images"],
)
def test_a_model_of_the_other_kind_of_data_is_refused_at_once(
    given: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(recipe="int8", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--data text --data-dir {text}", "charlstm, chartransformer"),
        ("--data text --data-dir {text} --model charlstm --context 1", "context: got 1"),
        ("--data text --data-dir {text} --model charlstm --context 4096", "a smaller context"),
        ("--data text --data-dir {text} --model charlstm --image-size 32", "image_size: got 32"),
        ("--data text --model charlstm", "data_dir"),
        ("--model mlp --context 64", "context: got 64, but digits holds images"),
    ],
)
def test_what_does_not_fit_text_is_one_line_of_the_shell(
    capsys: pytest.CaptureFixture[str], text: Path, tmp_path: Path, line: str, named: str
) -> None:
    status = main(["train", "int8", *line.format(text=text).split(), "--runs-dir", str(tmp_path)])
    errors = capsys.readouterr().err
    assert status == 2 and errors.count("\n") == 1 and named in errors
    assert list(tmp_path.iterdir()) == []


def test_the_interval_of_windows_covers_where_one_of_tokens_would_not() -> None:
    # windows of 50 tokens whose accuracies vary: 1000 trials; 5 sigma of 0.95 is 0.034
    generator = torch.Generator().manual_seed(0)
    hits = naive = 0
    for _ in range(1000):
        shift = 0.1 * torch.randn(40, 1, generator=generator)  # of the second model, a window
        chance = torch.rand(40, 50, generator=generator)
        first, second = chance < 0.6, chance < 0.6 + shift
        gap = accuracy_gap(first, second)
        hits += gap.low <= 0 <= gap.high
        tokens = accuracy_gap(first.flatten(), second.flatten())
        naive += tokens.low <= 0 <= tokens.high
    assert abs(hits / 1000 - 0.95) < 0.034
    assert naive / 1000 < 0.85


def test_windows_are_paired_by_their_mean_accuracies() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(40, 128, generator=generator)
    shift = 0.05 * torch.randn(40, 1, generator=generator)  # windows vary, by some six tokens
    first, second = chance < 0.6, chance < 0.6 + shift
    gap = accuracy_gap(first, second)
    a, b = (right.double().mean(1).tolist() for right in (first, second))
    plain = mean_difference(a, b, over="test windows")
    assert (gap.value, gap.n, gap.method) == (plain.value, plain.n, plain.method)
    assert 1 < (gap.high - gap.value) / (plain.high - plain.value) < 1.02  # the floor is not felt
    assert gap.high - gap.value == pytest.approx(gap.value - gap.low)
    with pytest.raises(ValueError, match=r"both \(N, T\)"):
        accuracy_gap(first[None], second[None])


@pytest.mark.parametrize("lost", [0, 3])
def test_windows_that_all_differ_alike_leave_the_doubt_of_some_tokens(lost: int) -> None:
    first = torch.ones(20, 50, dtype=torch.bool)
    second = first.clone()
    second[:, :lost] = False
    gap = accuracy_gap(first, second)
    assert gap.value == pytest.approx(-lost / 50)
    half = 2.093024 * (4 / 50**2 / (20 * 19)) ** 0.5  # t of 19 degrees of freedom
    assert gap.high - gap.value == pytest.approx(half) and half == pytest.approx(4.3 / 1000, 0.01)
    few = accuracy_gap(first[:2, :1], first[:2, :1])
    assert (few.value, few.low, few.high) == (0, -1, 1)


@pytest.mark.parametrize("both_ways", [False, True], ids=["lost", "lost or gained"])
@pytest.mark.parametrize("tokens", [1, 3, 4, 6, 20])
def test_the_interval_covers_the_gap_of_rare_tokens(tokens: int, both_ways: bool) -> None:
    # so many of 20 x 50 tokens differ on average: 500 trials; 5 sigma of 0.95 is 0.049
    generator = torch.Generator().manual_seed(tokens)
    rate = tokens / 1000
    truth = 0.0 if both_ways else -rate
    hits = 0
    for _ in range(500):
        chance = torch.rand(20, 50, generator=generator)
        differs = chance < rate
        gains = differs & (chance < rate / 2) if both_ways else torch.zeros_like(differs)
        gap = accuracy_gap(~gains, ~(differs & ~gains))
        hits += gap.low <= truth <= gap.high
    assert hits / 500 > 0.95 - 0.049


@pytest.mark.parametrize(
    ("n", "quantile"), [(31, 2.0423), (32, 2.0395), (61, 2.0003), (10**6, 1.96)]
)
def test_many_differences_use_students_t_still(n: int, quantile: float) -> None:
    spread = [float(i % 2) for i in range(n)]
    interval = mean_difference([0.0] * n, spread)
    deviation = (sum((x - interval.value) ** 2 for x in spread) / (n - 1)) ** 0.5
    half = interval.high - interval.value
    assert half == pytest.approx(quantile * deviation / n**0.5, rel=2e-4)

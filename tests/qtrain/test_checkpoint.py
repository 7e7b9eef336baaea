from __future__ import annotations

import copy
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import quiet, small, states

import qtrain
from qtrain import inspect
from qtrain.files.whole import write_atomically
from qtrain.training import checkpoint as checkpoint_module
from qtrain.training import run as run_module
from qtrain.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from qtrain.training.folder import open_run
from qtrain.training.metrics import MetricsLog, read_metrics
from qtrain.training.optimizer_state import load_optimizer
from qtrain.training.train import restored, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests copy from it."""
    runs = tmp_path_factory.mktemp("runs")
    train(small(runs, epochs=1), say=quiet)
    return runs / "run"


def content(finished: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(finished / "checkpoint.pt", weights_only=True)
    return loaded


def test_a_checkpoint_holds_the_run(finished: Path) -> None:
    stored = load_checkpoint(finished / "checkpoint.pt")
    assert stored.step == 5
    assert stored.config["recipe"] == "int8"
    assert stored.metrics_bytes == (finished / "metrics.jsonl").stat().st_size
    assert set(stored.branches) == {"baseline", "quantized"}
    assert any("noise_count" in name for name in stored.branches["quantized"]["model"])


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated_checkpoint_gives_one_clear_error(
    finished: Path, tmp_path: Path, part: float
) -> None:
    whole = (finished / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        load_checkpoint(path)


def test_flipped_bits_are_found(finished: Path, tmp_path: Path) -> None:
    whole = bytearray((finished / "checkpoint.pt").read_bytes())
    with zipfile.ZipFile(finished / "checkpoint.pt") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    whole[largest.header_offset + largest.file_size // 2] ^= 1
    (tmp_path / "checkpoint.pt").write_bytes(whole)
    with pytest.raises(CheckpointError, match=rf"checksum of its entry {largest.filename}"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_folder_and_an_unreadable_file_are_called_so(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(finished)

    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_module, "read_tensors", deny)
    with pytest.raises(CheckpointError, match=r"cannot be opened \(Permission denied\)"):
        load_checkpoint(finished / "checkpoint.pt")


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("container", ["pickle", "torch"])
def test_hostile_checkpoint_runs_no_code(tmp_path: Path, container: str) -> None:
    target, path = tmp_path / "owned", tmp_path / "checkpoint.pt"
    if container == "pickle":
        path.write_bytes(pickle.dumps({"format": "qtrain-checkpoint-1", "x": Hostile(target)}))
    else:
        torch.save({"format": "qtrain-checkpoint-1", "x": Hostile(target)}, path)
    with pytest.raises(CheckpointError, match=r"not loaded|damaged"):
        load_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "other"}, "qtrain-checkpoint"),
        ({"step": -1}, "step"),
        ({"step": "5"}, "step"),
        ({"metrics_bytes": 1.5}, "metrics_bytes"),
        ({"branches": []}, "branches"),
        ({"data": None}, "data"),
        ({"extra": 1}, "extra"),
        ({"config": {"lr": torch.ones(2)}}, "plain data"),
        ({"environment": {"torch": torch.ones(2)}}, "plain data"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_other_content_is_refused(
    finished: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({**content(finished), **changes}, path)
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(path)


def test_a_tensor_alone_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="no qtrain-checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_another_models_state_is_refused_and_nothing_is_loaded() -> None:
    model, other = nn.Linear(3, 2), nn.Linear(4, 2)
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"weight is \(2, 4\), need \(2, 3\)"):
        load_model(model, other.state_dict(), where="x")
    with pytest.raises(CheckpointError, match="bias is missing"):
        load_model(model, {"weight": torch.zeros(2, 3)}, where="x")
    with pytest.raises(CheckpointError, match="more is not in the model"):
        load_model(model, {**model.state_dict(), "more": torch.ones(1)}, where="x")
    with pytest.raises(CheckpointError, match="need a model's state"):
        load_model(model, 3, where="x")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.long(),
        lambda x: x.bool(),
        lambda x: x.to(torch.complex64),
        lambda x: x.double(),
        lambda x: x.to_sparse(),
        lambda x: x.to("meta"),
        lambda x: x.tolist(),
    ],
    ids=["int64", "bool", "complex", "double", "sparse", "meta", "list"],
)
def test_weights_of_another_kind_are_refused(change: Callable[[torch.Tensor], object]) -> None:
    model = nn.Linear(3, 2)
    state = {**model.state_dict(), "weight": change(model.state_dict()["weight"])}
    with pytest.raises(CheckpointError, match="weight is"):
        load_model(model, state, where="x")


def stepped(kind: str) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """An optimizer over a layer and its state after a step."""
    model = nn.Linear(3, 2)
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=0.1)
        if kind == "adamw"
        else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer, copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("sgd", "maximize", True),
        ("sgd", "momentum", 5.0),
        ("sgd", "momentum", None),
        ("sgd", "surprise", 1),
        ("sgd", "weight_decay", torch.ones(2)),
        ("adamw", "betas", (0.5, 0.5)),
    ],
    ids=lambda v: str(v)[:12],
)
def test_settings_of_another_optimizer_are_refused(kind: str, name: str, value: object) -> None:
    optimizer, state = stepped(kind)
    if value is None:
        del state["param_groups"][0][name]
    else:
        state["param_groups"][0][name] = value
    with pytest.raises(CheckpointError, match="not this optimizer's state"):
        load_optimizer(optimizer, state, where="x")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("sgd", "momentum_buffer", "text"),
        ("sgd", "momentum_buffer", None),
        ("sgd", "momentum_buffer", torch.tensor(1.0)),
        ("sgd", "momentum_buffer", torch.ones(2, 3, dtype=torch.int64)),
        ("sgd", "momentum_buffer", torch.ones(2, 3).to_sparse()),
        ("sgd", "exp_avg", torch.ones(2, 3)),
        ("adamw", "exp_avg", torch.tensor(1.0)),
        ("adamw", "step", torch.tensor(float("nan"))),
        ("adamw", "step", torch.ones(2, 3)),
        ("adamw", "step", -1),
    ],
    ids=lambda v: str(v)[:20],
)
def test_damaged_optimizer_state_is_refused(kind: str, name: str, value: object) -> None:
    optimizer, state = stepped(kind)
    state["state"][0][name] = value
    with pytest.raises(CheckpointError, match=rf"parameter 0: .*{name}"):
        load_optimizer(optimizer, state, where="x")


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizers_own_state_is_taken_and_its_rate_is_not(kind: str) -> None:
    optimizer, state = stepped(kind)
    fresh, _ = stepped(kind)
    state["param_groups"][0]["lr"] = "fast"
    load_optimizer(fresh, state, where="x")
    assert fresh.param_groups[0]["lr"] == 0.1
    loaded = fresh.state_dict()["state"]
    assert str(loaded) == str(optimizer.state_dict()["state"])


@pytest.mark.parametrize(
    "sums",
    [[0.0, 256, 0.0], [0.0, -1, 0.0], [float("nan"), 0, 0.0], [0.0, 0, float("inf")],
     [0.0, 0.0, 0.0], [0.0], "abc", [0.0, 0, "x"]],
    ids=str,
)  # fmt: skip
def test_damaged_sums_are_refused(finished: Path, tmp_path: Path, sums: object) -> None:
    folder = copy_run(finished, tmp_path)
    stored = content(finished)
    stored["branches"]["quantized"]["sums"] = sums
    torch.save(stored, folder / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="sums"):
        train(small(tmp_path, epochs=1, resume=True), say=quiet)


def test_another_optimizers_state_is_refused() -> None:
    model, other = nn.Linear(3, 2), nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    other(torch.ones(1, 4)).sum().backward()
    second.step()
    none: dict[str, Any] = {"state": {}, "param_groups": []}
    for state in (second.state_dict(), {}, None, none):
        with pytest.raises(CheckpointError, match="not this optimizer's state"):
            load_optimizer(optimizer, state, where="x")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")

    def fail(file: Any) -> None:
        file.write(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match=f"no such folder to write to: '{tmp_path}/a'"):
        write_atomically(tmp_path / "a" / "b.yaml", fail)


def test_a_full_disk_is_one_clear_error(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    stored = load_checkpoint(finished / "checkpoint.pt")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\).* whole"):
        save_checkpoint(tmp_path / "checkpoint.pt", stored)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_come_at_every_quarter_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(run_module, "save_checkpoint", lambda path, c: steps.append(c.step))
    train(small(tmp_path), say=quiet)  # 10 steps
    assert steps == [2, 4, 6, 8, 10]
    steps.clear()
    train(small(tmp_path, name="often", epochs=1, checkpoint_every=3), say=quiet)
    assert steps == [3, 5]


def copy_run(finished: Path, runs: Path) -> Path:
    folder = runs / "run"
    folder.mkdir(parents=True)
    for path in finished.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_earlier_run_is_never_overwritten_unasked(finished: Path, tmp_path: Path) -> None:
    folder = copy_run(finished, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"--resume .*--name .*--overwrite"):
        train(small(tmp_path, epochs=1), say=quiet)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_overwrite_starts_anew_and_deletes_only_its_own_files(
    finished: Path, tmp_path: Path
) -> None:
    folder = copy_run(finished, tmp_path)
    (folder / "notes.txt").write_text("mine")
    result = train(small(tmp_path, epochs=1, seed=1, overwrite=True), say=quiet)
    assert len(result.epochs) == 2
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "named"), [({"lr": 0.5}, "lr"), ({"epochs": 2}, "epochs"), ({"bits": 4}, "bits")]
)
def test_resuming_another_configuration_names_the_field(
    finished: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    copy_run(finished, tmp_path)
    with pytest.raises(ValueError, match=rf"another {named} \(stored"):
        train(small(tmp_path, **{"epochs": 1, "resume": True, **changes}), say=quiet)


def test_resuming_a_finished_run_changes_nothing(finished: Path, tmp_path: Path) -> None:
    folder = copy_run(finished, tmp_path)
    metrics = (folder / "metrics.jsonl").read_bytes()
    said: list[str] = []
    result = train(small(tmp_path, epochs=1, resume=True), say=said.append)
    assert any("step 5 of 5" in line for line in said)
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    assert result.text() == (finished / "report.txt").read_text()


def test_resume_without_a_checkpoint_starts_afresh_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    train(small(tmp_path, epochs=1, resume=True), say=said.append)
    assert "starting afresh" in said[0]


@pytest.mark.parametrize("entry", ["qtrain", "torch"])
def test_resume_under_other_versions_warns(finished: Path, tmp_path: Path, entry: str) -> None:
    folder = copy_run(finished, tmp_path)
    stored = content(finished)
    stored["environment"][entry] = "0.0.1"
    torch.save(stored, folder / "checkpoint.pt")
    with pytest.warns(UserWarning, match=rf"may change bits: {entry} \(then 0.0.1, now"):
        train(small(tmp_path, epochs=1, resume=True), say=quiet)
    sessions = json.loads((folder / "environment.json").read_text())
    assert sessions[-1]["qtrain"] == qtrain.__version__


def test_metrics_shorter_than_the_checkpoint_are_refused(finished: Path, tmp_path: Path) -> None:
    folder = copy_run(finished, tmp_path)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="changed since"):
        train(small(tmp_path, epochs=1, resume=True), say=quiet)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("environment.json", lambda old: b"{}"),
        ("environment.json", lambda old: b"[1]"),
        ("environment.json", lambda old: b"\xff["),
        ("metrics.jsonl", lambda old: b"x" + old[1:]),
        ("metrics.jsonl", lambda old: b"\xff" + old[1:]),
        ("metrics.jsonl", lambda old: b"[" * (len(old) - 1) + b"\n"),
        ("metrics.jsonl", lambda old: old.replace(b"train_loss", b"train_lose")),
        ("metrics.jsonl", lambda old: b"7" * (len(old) - 1) + b"\n"),
        ("metrics.jsonl", lambda old: b"{}" + old),
        ("config.json", lambda old: b"[]"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_damaged_side_files_are_named_and_left_alone(
    finished: Path, tmp_path: Path, file: str, damage: Callable[[bytes], bytes]
) -> None:
    folder = copy_run(finished, tmp_path)
    if file == "config.json":  # it counts only where there is no checkpoint
        (folder / "checkpoint.pt").unlink()
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=file):
        train(small(tmp_path, epochs=1, resume=True), say=quiet)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "errors.png"])
def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_deleted(
    finished: Path, tmp_path: Path, name: str
) -> None:
    folder = copy_run(finished, tmp_path)
    (folder / name).unlink()
    (folder / name).mkdir()
    count = len(list(folder.iterdir()))
    for how in ("overwrite", "resume"):
        with pytest.raises(ValueError, match=name):
            train(small(tmp_path, epochs=1, **{how: True}), say=quiet)
    assert len(list(folder.iterdir())) == count


def test_a_dangling_checkpoint_is_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(ValueError, match="link to none"):
        train(small(tmp_path, epochs=1, resume=True), say=quiet)


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_second_process_is_kept_out_until_the_first_ends(
    finished: Path, tmp_path: Path, how: str
) -> None:
    folder = copy_run(finished, tmp_path)
    (folder / ".qtrain-0123.tmp").write_bytes(b"of a killed process")
    config = small(tmp_path, epochs=1, **{how: True})
    with (
        open_run(small(tmp_path, epochs=1, resume=True), say=quiet),
        pytest.raises(ValueError, match="another process"),
    ):
        train(config, say=quiet)
    assert (folder / "checkpoint.pt").exists()
    train(config, say=quiet)
    assert not list(folder.glob("*.tmp"))


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_run(small(Path("~/runs")), say=quiet) as (folder, _):
        assert folder.path == tmp_path / "runs" / "run"


@pytest.mark.parametrize("name", ["file", "x" * 300])
def test_a_folder_that_cannot_be_made_names_the_settings(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="runs_dir and name"):
        train(small(tmp_path, name=name), say=quiet)


def test_a_full_disk_while_metrics_are_written_is_one_clear_error(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log._file.close()
    log._file = open("/dev/full", "ab")
    with pytest.raises(OSError, match=r"metrics\.jsonl: cannot be written \(No space"):
        log.write(kind="a")
    log.close()


def test_metrics_are_cut_to_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(kind="a", value=1)
    kept = log.position()
    log.write(kind="a", value=float("nan"))
    log.close()
    assert read_metrics(path)[1] == {"kind": "a", "value": None}
    log = MetricsLog(path, keep=kept)
    log.write(kind="b", value=3)
    log.close()
    assert read_metrics(path) == [{"kind": "a", "value": 1}, {"kind": "b", "value": 3}]


def test_inspection_of_a_checkpoint_equals_the_runs_own(finished: Path) -> None:
    before = states(finished / "checkpoint.pt")
    with restored(finished / "checkpoint.pt") as batch:
        report = inspect(*batch)
    assert report.table() in (finished / "report.txt").read_text()
    after = states(finished / "checkpoint.pt")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_inspection_uses_its_own_threads_and_workers(finished: Path, tmp_path: Path) -> None:
    stored = content(finished)
    stored["config"] |= {"threads": 10**6, "workers": 10**6}
    torch.save(stored, tmp_path / "checkpoint.pt")
    with restored(tmp_path / "checkpoint.pt") as batch:
        assert inspect(*batch).rows


def test_inspection_refuses_a_foreign_configuration(finished: Path, tmp_path: Path) -> None:
    stored = content(finished)
    for name, value in (("recipe", "int9"), ("model", "resnet20"), ("surprise", 1)):
        changed = {**stored, "config": {**stored["config"], name: value}}
        torch.save(changed, tmp_path / "checkpoint.pt")
        with pytest.raises(CheckpointError, match=r"refused|another model"):
            restored(tmp_path / "checkpoint.pt").__enter__()

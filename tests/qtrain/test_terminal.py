"""What files from elsewhere hold is shown on a terminal, and not obeyed by it or a spreadsheet."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_cases import quiet, rewrite, small, unchecked

from qtrain import Report, Row, compare, diagnose
from qtrain.cli import main
from qtrain.files import terminal
from qtrain.files.terminal import printable
from qtrain.reports.progress import Progress
from qtrain.reports.rows import save_rows
from qtrain.training.train import train

#: Clears the screen, names the window, rings, goes back over the line, turns the direction.
EVIL = "\x1b[2J\x1b]0;owned\x07\r\x08\x9b1m\u202e\u2028\x7f\ud800\nqtrain: all is well"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose files were rewritten: every name of a layer, setting and version is hostile."""
    runs = tmp_path_factory.mktemp("runs")
    train(small(runs, epochs=1, monitor=2), say=quiet)
    folder = runs / "run"
    lines = unchecked(folder / "monitor.jsonl")
    for line in lines[1:]:
        line["layer"] += EVIL
        line["note"] = EVIL
        line["cosine"] = 0.1  # so that there is something to diagnose
        line["sqnr_db"] = -3.0
    rewrite(folder / "monitor.jsonl", lines)
    errors = json.loads((folder / "errors.json").read_text())
    for row in errors:
        row["layer"] += EVIL
        row["note"] = EVIL
    (folder / "errors.json").write_text(json.dumps(errors))
    environment = json.loads((folder / "environment.json").read_text())
    environment[0]["processor"] = environment[0][f"more{EVIL}"] = EVIL
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """All that a command prints; nothing of it is obeyed."""
    main(arguments)
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert text and all(c.isprintable() or c == "\n" for c in text), text
    assert "\nqtrain: all is well" not in text  # no line of its own
    return text


def test_a_hostile_run_prints_its_names_and_no_more(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in run.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((run / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps({**config, "model": EVIL, f"x{EVIL}": EVIL[:9], f"y{EVIL}": 3 * EVIL})
    )
    for found in (compare(run, other), diagnose(run)):  # in a notebook, too
        assert all(c.isprintable() or c == "\n" for c in str(found))
    text = shown(capsys, "compare", str(run), str(other))
    assert r"\x1b[2J" in text and r"\u202e" in text
    assert r"\x1b[2J" in shown(capsys, "diagnose", str(run))
    assert r"\x1b[2J" in shown(capsys, "report", str(other))  # an error that names the setting
    page = tmp_path / f"{EVIL[:4]}.html"
    assert r"\x1b[2J" in shown(capsys, "report", str(run), "--save", str(page))
    raw = page.read_bytes()
    assert b"\x1b" not in raw and rb"\x1b[2J" in raw


def test_a_hostile_checkpoint_and_hostile_paths_print_no_more_than_text(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = torch.load(run / "checkpoint.pt", weights_only=True)
    for name, changed in (
        ("config", {**stored["config"], "recipe": EVIL}),
        ("config", {**stored["config"], f"x{EVIL[:20]}": 1}),
        ("data", EVIL.replace("\ud800", "")),
        ("branches", {"quantized": {EVIL[:8]: 1}}),
    ):
        torch.save({**stored, name: changed}, tmp_path / "c.pt")
        shown(capsys, "inspect", str(tmp_path / "c.pt"))
    torch.save({EVIL[:8]: 1, **stored}, tmp_path / "c.pt")
    shown(capsys, "cost", str(tmp_path / "c.pt"))
    shown(capsys, "inspect", str(tmp_path / f"{EVIL[:6]}.pt"))
    with pytest.raises(SystemExit):
        main(["inspect", "c.pt", EVIL[:6]])
    assert "\x1b" not in capsys.readouterr().err
    for flag in ("--runs-dir", "--name"):
        text = shown(capsys, "train", "int8", "--model", "mlp", flag, str(tmp_path / EVIL[:4]))
        assert r"/\x1b[2J" in text


@pytest.mark.filterwarnings("default:.*not read")
def test_class_and_file_names_of_a_data_set_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        for name in ("cat", f"dog{EVIL[:4]}"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / part / name / f"{EVIL[:4]}.png")
            (tmp_path / part / name / f"{EVIL[:4]}.txt").write_text("no image")
    flags = ["--data", "imagefolder", "--data-dir", str(tmp_path), "--model", "mlp", "--epochs"]
    flags += ["1", "--runs-dir", str(tmp_path / "runs"), "--threads", "1", "--name", "run"]
    text = shown(capsys, "train", "int8", *flags)
    assert r"2 not read, by name no images of a class: cat/\x1b[2J.txt, dog\x1b[2J/\x1b" in text
    (tmp_path / "val" / f"dog{EVIL[:4]}" / f"{EVIL[:4]}.png").write_bytes(b"no image")
    text = shown(capsys, "train", "int8", *flags, "--overwrite")
    assert r"dog\x1b[2J/\x1b[2J.png: not a readable image" in text


def test_a_report_spells_the_names_of_layers_and_roles_before_it_counts_columns() -> None:
    row = Row(EVIL, f"in{EVIL[:4]}", 1.0, 1.0, 0.0, 0.0, 0.0, 0, 0.0, 1.0, 1, note=EVIL)
    report = Report((row, replace(row, layer="b")))
    for text in (str(report), report.overview()):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert r"\x1b[2J" in text and max(map(len, text.splitlines())) <= 80


def test_progress_and_remarks_show_what_they_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal_there in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda there=terminal_there: there)
        progress = Progress(2, done=0, text=EVIL)
        progress.line(f"epoch {EVIL}")
        progress.close()
        said = capsys.readouterr().err
        assert r"epoch \x1b[2J" in said and "owned\x07" not in said and "\x1b[2J" not in said
    terminal.say(EVIL)
    assert capsys.readouterr().err == printable(EVIL) + "\n"


@pytest.mark.parametrize("columns", [0, 80])
def test_a_terminal_without_columns_gets_lines_with_the_time_left(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    progress = Progress(9, done=0, text="run")
    for _ in range(3):
        progress.step()
    progress.line("epoch 1")
    progress.close()
    assert ("epoch 1  (about" in capsys.readouterr().err) == (columns == 0)


def test_what_prints_stays_and_what_does_not_is_spelt() -> None:
    for text in ("a.b", "naïve 日本 ½ 🙂", "x\ny"):
        assert printable(text) == text
    assert printable("x\ny", keep="") == r"x\ny"
    assert printable("\x00\x1b\x9b\u202e\ufeff\ud800\U000e0001") == (
        r"\x00\x1b\x9b\u202e\ufeff\ud800\U000e0001"
    )
    everything = "".join(map(chr, range(0x110000)))
    spelt = printable(everything, keep="")
    assert spelt.isprintable() and len(spelt) > len(everything)


@pytest.mark.parametrize(
    "name", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "-"]
)
def test_a_cell_that_a_spreadsheet_would_compute_gets_an_apostrophe(
    tmp_path: Path, name: str
) -> None:
    row = Row(name, "input", -1.5, 1.0, float("-inf"), 0.0, 0.0, 0, -2.0, 1.0, 1, note="-1.5e3")
    save_rows([row, replace(row, layer="a=b", note="+inf")], Row, tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["layer"] == f"'{name}" and second["layer"] == "a=b"
    assert (first["sqnr_db"], first["bias"], first["low"]) == ("-1.5", "-inf", "-2.0")
    assert (first["note"], second["note"]) == ("-1.5e3", "+inf")  # numbers, if in text

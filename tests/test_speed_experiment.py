"""The speed experiment's scripts run on tiny networks and write whole tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SPEED = Path(__file__).parents[1] / "experiments" / "speed"


def run(script: str, folder: Path, *arguments: str) -> str:
    """The script's output, as a user would run it: a process of its own."""
    done = subprocess.run(
        [sys.executable, str(SPEED / script), "--quick", "--output", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_table_has_every_row_with_times_memory_and_parts(tmp_path: Path) -> None:
    printed = run(
        "run.py", tmp_path, "--networks", "resnet18", "transformer-block", "--rounds", "2",
        "--layouts", "channels_last",
        "--methods", "int8 range-norm", "int8 fp16-outputs", "QPyTorch",
    )  # fmt: skip
    assert "resnet18, batch 4, 2 rounds" in printed
    result: dict[str, Any] = json.loads((tmp_path / "speed.json").read_text())
    assert {"torch", "flags", "threads", "commit"} <= result["environment"].keys()
    assert min(result["rates"][rate] for rate in ("fp32", "int8", "bandwidth")) > 0
    assert (tmp_path / "speed.svg").read_text().startswith("<?xml")
    networks = {table["network"]: table for table in result["tables"]}
    assert list(networks) == ["resnet18", "transformer-block"]
    for name, table in networks.items():
        rows = {row["method"]: row for row in table["rows"]}
        assert next(iter(rows)) == "fp32"
        images = name == "resnet18"
        assert ("int8 range-norm" in rows) == images
        assert rows["fp32"]["layout"] == ("channels_last" if images else "contiguous")
        assert min(table["floor_seconds"].values()) > 0
        for method, row in rows.items():
            if row["status"] != "ok":
                assert method == "QPyTorch" and "qtorch" in row["status"]
                continue
            low, median, high = row["ratio"]
            assert 0 < low <= median <= high and len(row["seconds_by_round"]) == 2
            parts, step = row["parts"]["seconds"], row["parts"]["step"]
            assert sum(parts.values()) == pytest.approx(step) and min(parts.values()) >= 0
            # a fused quantizer finds its range itself
            quantizers = parts["codes"] + parts["range"]
            assert (quantizers > 0) == method.startswith("int8")
            assert parts["products"] > 0 and parts["norm"] > 0
            assert row["saved_bytes"] > 0
            assert ("summary" in row) == method.startswith("int8")


@pytest.mark.costly
def test_growth_gives_ratios_and_the_cost_of_a_layer(tmp_path: Path) -> None:
    printed = run("growth.py", tmp_path, "--rounds", "1")
    assert "one more Conv2d, forward and backward" in printed
    result = json.loads((tmp_path / "growth.json").read_text())
    assert result["sweeps"].keys() == {"batch", "width", "depth"}
    assert all(row["ratio"][1] > 0 for rows in result["sweeps"].values() for row in rows)
    assert (tmp_path / "growth.svg").exists()


#: both in one process: seconds go into its imports
WRONG = """
import runpy, sys
folder, output = sys.argv[1:]
sys.path.insert(0, folder)
for script in ("run.py", "growth.py"):
    sys.argv[:] = [script, "--rounds", "0", "--output", output]
    try:
        runpy.run_path(f"{folder}/{script}", run_name="__main__")
    except SystemExit as stop:
        print(script, stop)
"""


def test_a_wrong_number_of_rounds_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRONG, str(SPEED), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [f"{script} --rounds: got 0, need at least 1" for script in ("run.py", "growth.py")]
    assert done.stdout.splitlines() == lines

"""Progress where stderr is no terminal: lines, and the time left."""

from __future__ import annotations

import pytest

from qtrain.reports import progress as module
from qtrain.reports.progress import Progress


class _Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_the_time_left_does_not_count_the_first_step(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Progress(10, done=2, text="run")
    bar.line("begins")
    clock.now = 3.0  # it compiled
    bar.step()
    bar.line("one step")
    for _ in range(2):
        clock.now += 15.0
        bar.step()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    left = ["step 4/10  (about 1:30 left)", "step 5/10  (about 1:15 left)"]
    assert lines == ["begins", "one step", *left]


def test_the_time_left_holds_what_comes_beside_and_after_the_steps(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Progress(3, done=0, text="run", rest=lambda step: 10 * step + 7)
    for _ in range(3):
        clock.now += 1.0
        bar.step()
        clock.now += 50.0  # a test
        bar.line("tested")
        bar.resume()
    bar.close()
    said = [line for line in capsys.readouterr().err.splitlines() if "tested" in line]
    assert said == ["tested", "tested  (about 0:18 left)", "tested  (about 0:17 left)"]


def test_lines_come_every_few_seconds_and_more_seldom_in_a_long_run(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Progress(4000, done=0, text="run")
    for _ in range(4000):
        clock.now += 1.0
        bar.step()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert 12 <= sum(int(line.split("/")[0][5:]) <= 60 for line in lines) <= 16
    assert sum(int(line.split("/")[0][5:]) > 3700 for line in lines) == 10

"""Progress where stderr is no terminal: lines, and the time left."""

from __future__ import annotations

import pytest

from qtrain.reports import progress as module
from qtrain.reports.progress import Progress


class _Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_the_time_left_does_not_count_the_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = _Clock()
    monkeypatch.setattr(module, "time", clock)
    bar = Progress(10, done=2, text="run")
    bar.line("begins")
    clock.now = 20.0  # it compiled
    bar.step()
    bar.line("one step")
    for _ in range(2):
        clock.now += 15.0
        bar.step()  # 30 s after the last line
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["begins", "one step", "step 5/10  (about 1:15 left)"]

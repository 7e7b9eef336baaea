"""A study runs what is missing, keeps what is there, and judges by what was stated."""

from __future__ import annotations

import json
import linecache
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from qtrain import StudyResult, data, load_study, study
from qtrain.cli import main
from qtrain.data.parts import held_out
from qtrain.training.intervals import Interval
from qtrain.training.study.built import check_arms
from qtrain.training.study.declared import check_rates, declare
from qtrain.training.study.differences import Difference
from qtrain.training.study.execute import execute
from qtrain.training.study.executors import executor
from qtrain.training.study.outcome import StudyRun, outcome
from qtrain.training.study.page import publish, save_page
from qtrain.training.study.panels import gap_panel
from qtrain.training.study.plan import Job, Plan
from qtrain.training.study.planned import planned
from qtrain.training.study.study import seconds
from qtrain.training.study.tuning import at_rates, factors_of, tuned, tuning
from qtrain.version import VERSION

FAST = {"epochs": 1, "batch_size": 256, "threads": 1, "device": "cpu"}
RECIPES = {"fp32": None, "hot": {"recipe": "fp32", "lr": 1e12, "warmup": 0.0}}


def net(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("study")
    return study(
        net, RECIPES, seeds=2, config=FAST, runs_dir=str(folder), name="s", say=quiet
    )  # fmt: skip


def place(result: StudyResult) -> Path:
    return Path(result.plan.runs_dir) / "s"


def test_every_run_is_a_row_and_a_diverged_one_counts_as_chance(done: StudyResult) -> None:
    assert [(run.arm, run.seed, run.state) for run in done.runs] == [
        ("fp32", 0, "finished"), ("hot", 0, "diverged"),
        ("fp32", 1, "finished"), ("hot", 1, "diverged"),
    ]  # fmt: skip
    hot = done.runs[1]
    assert (hot.accuracy, hot.loss) == (0.1, math.log(10)) and "Try a lower lr" in hot.note
    assert done.values("hot") == {0: 0.1, 1: 0.1}
    first = done.runs[0]
    stored = json.loads((Path(first.path) / "summary.json").read_text())
    assert first.accuracy == stored["accuracy"]["quantized"] and first.seconds > 0
    (gap,) = done.differences
    assert gap.interval.value == pytest.approx(0.1 - (first.accuracy + done.runs[2].accuracy) / 2)
    text = str(done)
    for part in (
        "2, 2 diverged",
        "hot, seed 1, counts as chance, 0.1: ",
        done.verdicts["hot"],
        "Holm",
    ):
        assert part in " ".join(text.split())


def test_its_folder_holds_page_figure_and_rows(done: StudyResult) -> None:
    folder = place(done)
    assert (folder / "report.txt").read_text() == f"{done}\n"
    rows = json.loads((folder / "runs.json").read_text())
    assert [row["accuracy"] for row in rows] == [run.accuracy for run in done.runs]
    assert (folder / "runs.csv").read_text().splitlines()[0].startswith("arm,seed,state,accuracy")
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    for part in ("hot, seed 1", done.verdicts["hot"], 'class="arm1"', "counts as chance"):
        assert part in page


def test_what_the_page_says_first_and_leaves_out(done: StudyResult) -> None:
    text = (place(done) / "report.html").read_text()
    heads = re.findall(r"<th scope=\"col\"[^>]*>([^<]*)</th>", text)
    assert heads[:6] == ["arm", "difference", "95 % interval", "accuracy", "sd", "runs"]
    settings = text[text.index('id="settings"') :]
    for name in ("baseline", "runs_dir", "resume", "name"):
        assert f'<th scope="row">{name}</th>' not in settings
    assert '<th scope="row">lr</th>' in settings
    assert f"by qtrain {VERSION}" in text
    assert "2 arms x 2 seeds, test accuracy after 1 epoch" in text
    machine = done.runs[0].machine
    assert machine in text[text.index('id="machines"') :]
    assert f"<b>hot</b>: {done.verdicts['hot']}" in text
    few = replace(done, plan=replace(done.plan, primary=()))
    save_page(few, place(done) / "few.html")
    assert "<li>hot (exploratory): " in (place(done) / "few.html").read_text()
    assert "hot (exploratory): " in str(few) and "hot (exploratory): " not in str(done)


@pytest.mark.parametrize(
    ("metric", "value", "told"),
    [("accuracy", -1, ", worse"), ("accuracy", 1, ", better"), ("loss", 1, ", worse"),
     ("loss", -1, ", better"), ("rate", 1, "")],
)  # fmt: skip
@pytest.mark.cases(9, 1)
def test_what_differs_is_better_or_worse(
    done: StudyResult, metric: str, value: float, told: str
) -> None:
    vars(found := replace(done, plan=replace(done.plan, metric=metric)))["differences"] = (
        replace(gap("hot", value, 0.1), verdict="differs: [1, 2]"),
    )
    assert found.verdicts == {"hot": f"differs{told}: [1, 2]"}


def gap(arm: str, value: float, half: float) -> Difference:
    interval = Interval(value=value, low=value - half, high=value + half, n=3, method="")
    return Difference(
        arm=arm, baseline="a", interval=interval, margin=0.01, verdict="", p_differs=1,
        p_equal=1, needs=None, primary=True,
    )  # fmt: skip


def test_an_arm_at_chance_flattens_no_interval(done: StudyResult) -> None:
    gaps = [gap("b", -0.02, 0.01), gap("hot", -0.87, 0.02)]
    panel = gap_panel(gaps, "test accuracy", 0.01, done.runs, ["a", "b", "hot"])
    assert list(panel.ticks) == ["b", "hot \u2193 -0.87"]
    assert min(y for _, y in panel.points) == pytest.approx(-0.033)
    area = next(line for line in panel.lines if line.kind == "arm1 area")
    assert (area.points[0][1], area.top[0]) == pytest.approx((-0.03, -0.01))
    assert [line.label for line in panel.lines if line.kind == "arm2"] == ["hot (2 diverged)"] * 2
    apart = gap_panel([gap("b", 0.3, 0.1), gap("hot", -0.87, 0.02)], "rate", 1e-4, (), ["b", "hot"])
    assert list(apart.ticks) == ["b", "hot"] and apart.unit == "rate"


def test_an_interval_shows_on_which_side_of_0_it_ends(done: StudyResult) -> None:
    near = [gap("hot", 3e-5, 2e-5)]
    vars(found := replace(done))["differences"] = tuple(near)
    assert found.table().lines[1][4:] == ["+3.0e-05", "[+1.0e-05, +0.0001]"]


def test_its_figure_is_matplotlibs(done: StudyResult) -> None:
    from matplotlib.figure import Figure

    figure = done.plot()
    assert isinstance(figure, Figure) and len(figure.axes) == 2
    own = Figure()
    axes = own.subplots()
    assert done.plot(ax=axes) is own
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    mean = (done.runs[0].accuracy + done.runs[2].accuracy) / 2
    assert lines["fp32"][-1] == pytest.approx(mean) and "hot (2 diverged)" in lines


def test_its_runs_are_a_frame_of_pandas(done: StudyResult) -> None:
    pytest.importorskip("pandas")
    frame = done.frame()
    assert list(frame["state"]) == [run.state for run in done.runs]


def test_the_same_call_does_no_run_twice_and_more_seeds_only_those(done: StudyResult) -> None:
    started: list[str] = []

    class Spy:
        at_once = 1

        def start(self, job: Job) -> Any:
            started.append(job.text)
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    runs_dir = done.plan.runs_dir
    again = study(net, RECIPES, seeds=2, config=FAST, runs_dir=runs_dir, name="s", executor=Spy())
    assert again.runs == done.runs and not started
    with pytest.raises(KeyboardInterrupt, match="4 of 6 runs are done; the same call goes on"):
        study(net, RECIPES, seeds=3, config=FAST, runs_dir=runs_dir, name="s", executor=Spy())
    assert started == ["fp32, seed 2"]


def test_another_setting_is_refused_by_the_runs_that_are_there(done: StudyResult) -> None:
    other = {**FAST, "epochs": 2}
    with pytest.raises(ValueError, match=r"another epochs .*give the study another name"):
        study(net, RECIPES, seeds=2, config=other, runs_dir=done.plan.runs_dir, name="s")


def test_a_call_that_is_refused_states_nothing(done: StudyResult) -> None:
    known = (place(done) / "study.json").read_text()
    for change in ({"config": {**FAST, "epochs": 2}}, {"rates": (1,)}):
        given: dict[str, Any] = {"config": FAST, "margin": 0.5, "seeds": 2, **change}
        with pytest.raises(ValueError, match=r"another epochs|rates: got"):
            study(net, RECIPES, runs_dir=done.plan.runs_dir, name="s", **given)
    assert (place(done) / "study.json").read_text() == known


def test_runs_of_another_source_are_told_and_kept(tmp_path: Path) -> None:
    script = tmp_path / "edited_net.py"
    text = (
        "from torch import nn\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes){})\n"
    )
    own: dict[str, Any] = {
        "recipes": {"a": None, "b": None}, "seeds": 1, "name": "edited", "runs_dir": str(tmp_path),
        "config": {**FAST, "hooks": ("qtrain:Hook",)},
    }  # fmt: skip
    told: list[str] = []
    for more in ("", "", ", nn.Identity()"):
        script.write_text(text.format(more))
        sys.modules.pop("edited_net", None)
        linecache.checkcache()
        told.clear()
        study(f"{script}:build", say=told.append, **own)
    assert [line.partition(" ran")[0] for line in told] == ["a, seed 0 and 1 others"]
    assert "another source" in told[0] and str(tmp_path / "edited") in told[0]
    assert "qtrain:Hook" not in told[0]  # which is as it was
    for file in (tmp_path / "edited").glob("a-*/environment.json"):  # it went on with the new one
        (session,) = json.loads(file.read_text())
        name = told[0].partition("is now ")[2].partition(";")[0]
        later = {**session, "code": session["code"].replace(session["code"].split(", ")[0], name)}
        file.write_text(json.dumps([session, later]))
    study(f"{script}:build", say=told.append, **own)
    assert told[1] == told[0]


def test_a_run_that_lost_epochs_is_refused(done: StudyResult) -> None:
    path = Path(done.runs[0].path) / "metrics.jsonl"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"metrics.jsonl has 0 of its 1 epochs; restore it"):
        outcome(done.plan.jobs()[0])
    path.write_bytes(whole)


def test_a_folder_that_cannot_be_made_or_written_is_told(done: StudyResult, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/s cannot be made a folder .*another runs_dir"):
        declare(planned(net, RECIPES, runs_dir=str(tmp_path / "file"), name="s"))
    gone = planned(net, RECIPES, runs_dir=str(tmp_path / "gone"), name="s")
    with pytest.raises(OSError, match=r"gone/s: the study's files cannot be written .*same call"):
        publish(replace(done, plan=gone))


def images(label: int) -> tuple[TensorDataset, TensorDataset]:
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x.flatten(1)[:, :4].argmax(1) + label) % 4
    return TensorDataset(x, y), TensorDataset(x[:32], y[:32])


def images_in(data_dir: str) -> tuple[TensorDataset, TensorDataset]:
    return images(int(Path(data_dir).read_text()))


def test_runs_on_other_data_are_refused(tmp_path: Path) -> None:
    def run(data: Any, **config: Any) -> StudyResult:
        given: dict[str, Any] = {"seeds": 1, "runs_dir": str(tmp_path), "say": quiet}
        name = "by-function" if config else "by-value"
        return study(
            net, {"a": None, "b": {"lr": 0.01}}, data=data, config=FAST | config, name=name, **given
        )

    known = run(images(0))
    assert known.runs[0].state == "finished" and run(images(0)).runs == known.runs
    with pytest.raises(ValueError, match=r"holds a run on other data: its .*another\s+name"):
        run(images(1))
    for place, label in (("a", 0), ("b", 1), ("moved", 0)):
        (tmp_path / place).write_text(str(label))
    known = run(images_in, data_dir=str(tmp_path / "a"))
    assert run(images_in, data_dir=str(tmp_path / "moved")).runs == known.runs
    with pytest.raises(ValueError, match=r"other data .data_dir was '.*a', now '.*b'"):
        run(images_in, data_dir=str(tmp_path / "b"))


def test_a_run_whose_test_loss_is_not_finite_counts_as_chance(tmp_path: Path) -> None:
    one_step = {**FAST, "batch_size": 1437}
    recipes = {"fp32": None, "hot": {"recipe": "fp32", "lr": 1e38, "warmup": 0.0}}
    found = study(
        net, recipes, seeds=2, config=one_step, metric="loss", runs_dir=str(tmp_path), say=quiet
    )  # fmt: skip
    hot = found.runs[1]
    assert (hot.state, hot.note) == ("diverged", "its test loss is not finite")
    assert found.values("hot") == dict.fromkeys((0, 1), math.log(10)) and hot.accuracy == 0.1
    summary = Path(hot.path) / "summary.json"
    summary.write_text(summary.read_text().replace('"classes": 10', '"classes": null'))
    with pytest.raises(ValueError, match="say no number of classes; restore or remove"):
        outcome(found.plan.jobs()[1])


def test_terms_that_change_after_runs_are_told(done: StudyResult) -> None:
    known = (place(done) / "study.json").read_text()
    assert done.declared[0].after == 0 and "was changed" not in str(done)
    stated = declare(replace(done.plan, margin=0.5))
    (place(done) / "study.json").write_text(known)
    assert [(one.margin, one.after) for one in stated] == [(0.01, 0), (0.5, 4)]
    text = " ".join(str(replace(done, declared=stated)).split())
    assert "after 4 runs: accuracy, margin 0.5" in text


def test_a_run_starts_only_where_it_fits_the_budget(done: StudyResult) -> None:
    plan = planned(net, RECIPES, seeds=3, config=FAST, runs_dir=done.plan.runs_dir, name="s")

    class Never:
        at_once = 1

        def start(self, job: Job) -> Any:
            raise AssertionError(job)

        def close(self) -> None:
            pass

    said: list[str] = []
    runs = execute(plan, Never(), budget=5.0, say=said.append)
    assert [run.state for run in runs[4:]] == ["not started"] * 2
    assert "fp32, seed 2 is expected to take 0:10" in said[-1] and "2 runs are left" in said[-1]


def test_an_arm_that_cannot_run_is_a_row_and_stops_no_other(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise LookupError("only when it trains")
            return super().forward(x)

    def odd(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), Odd(num_classes, 10))

    models = {"good": net, "odd": odd}
    found = study(
        models, RECIPES, seeds=[5], config=FAST, runs_dir=str(tmp_path), name="s", say=quiet
    )  # fmt: skip
    states = {run.arm: run.state for run in found.runs}
    assert states == {
        "fp32 good": "finished", "hot good": "diverged", "fp32 odd": "failed", "hot odd": "failed",
    }  # fmt: skip
    assert "2 of 4 runs have not ended" in str(found)
    assert [run.arm for run in found.failed] == ["fp32 odd", "hot odd"]
    assert set(found.verdicts) == {"hot good", "hot odd"}
    runs = [run(arm.name, seed, 0.5) for arm in found.plan.arms for seed in (0, 1)]
    notes = replace(found, runs=tuple(runs)).notes()
    assert "hold together at 95 % (Holm), of each model by itself" in notes[0]
    assert outcome(found.plan.jobs()[0]).seed == 5


class NoRun:
    """Starts nothing."""

    at_once = 1

    def start(self, job: Job) -> Any:
        raise AssertionError(job)

    def close(self) -> None:
        pass


def needy(num_classes: int, width: int) -> nn.Module:
    return net(num_classes)


def broken(num_classes: int) -> nn.Module:
    raise LookupError("no such layer")


CANNOT: Sequence[tuple[Any, str]] = [
    (needy, r"arm 'b': model: .*needy' needs width, but is called with"),
    (broken, r"arm 'b': LookupError: no such layer .*test_study.py:"),
    (lambda num_classes: net(num_classes - 1), r"arm 'b': model: .* gives logits .*need"),
    ("timm:resnet18", "arm 'b': model: got 'timm:resnet18', but timm is not installed"),
]


@pytest.mark.parametrize(("model", "said"), CANNOT)
def test_an_arm_that_cannot_run_at_all_is_refused_before_any_run(
    model: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=said):
        study(
            net, {"a": None, "b": {"model": model}}, seeds=3, config=FAST, executor=NoRun(),
            runs_dir=str(tmp_path), say=quiet,
        )  # fmt: skip
    assert not list(tmp_path.iterdir()) and torch.equal(torch.random.get_rng_state(), before)


def test_arms_share_their_data_and_those_that_ended_need_none(
    done: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(config: Any, given: Any) -> Any:
        asked.append(config.run_name)
        return data.load("digits")

    monkeypatch.setattr("qtrain.training.study.built.load_data", load)
    check_arms(done.plan)
    assert not asked
    check_arms(replace(done.plan, seeds=(0, 7)))
    assert asked == ["fp32-seed7"]


def test_other_rates_than_those_of_the_runs_that_are_there_are_refused(tmp_path: Path) -> None:
    plan = planned(net, RECIPES, config=FAST, runs_dir=str(tmp_path), name="s")
    declare(plan, (1.0, 2.0))
    check_rates(plan, (1.0, 4.0))  # no run yet
    folder = tmp_path / "s/hot-seed1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    check_rates(plan, (1.0, 2.0))
    for factors, now in (((1.0, 4.0), r"\(1.0, 4.0\)"), ((), "None")):
        with pytest.raises(ValueError, match=rf"rates: got {now}, .*hot-seed1.*\(1.0, 2.0\)"):
            check_rates(plan, factors)
    with pytest.raises(ValueError, match=r"rates: got \(1.0, 4.0\)"):
        study(net, RECIPES, config=FAST, runs_dir=str(tmp_path), name="s", rates=(1, 4))


def test_the_command_tells_a_failed_run_from_one_that_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        f"model: mlp\nrecipes:\n- fp32\n- int8\nseeds: 1\nruns_dir: {tmp_path}\n"
        f"config: {{epochs: 1, batch_size: 256, lr: 1e-3}}\nbudget: 1h\n"
    )
    ends = {"fp32-seed0": "", "int8-seed0": "ValueError: no"}
    monkeypatch.setattr(executor, "do", lambda job: ends[job.config.run_name])
    assert main(["study", str(path)]) == 1
    assert main(["report", str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "s/report.html")
    assert main(["report", str(tmp_path / "s"), "--save", "x.html"]) == 2
    (tmp_path / "s/report.html").unlink()
    assert main(["report", str(tmp_path / "s")]) == 2
    ends["int8-seed0"] = ""
    assert main(["study", str(path)]) == 0


REFUSED: Sequence[tuple[dict[str, Any], str]] = [
    ({"recipes": ["int8"]}, "recipes: got 1, need two or more"),
    ({"recipes": {"a/b": "int8", "c": "fp32"}}, "need one without slashes"),
    ({"recipes": {"a": "int8", "b": {"bit": 4}}}, "got 'bit', which is no setting.*'bits'"),
    ({"recipes": ["int8", "int9"]}, "arm 'int9': recipe: got 'int9'"),
    ({"config": {"seed": 3}}, "config: got 'seed', which a study has itself; say seeds"),
    ({"config": {"epoch": 3}}, "no setting of a run; did you mean 'epochs'"),
    ({"baseline": "fp31"}, "baseline: got 'fp31'"),
    ({"primary": ["int7"]}, "primary: got 'int7'"),
    ({"primary": ["fp32"]}, "primary: got 'fp32', the baseline.* need of int8"),
    ({"recipes": ["fp32", "int8", "int8"]}, "recipes: got 'int8' twice"),
    ({"seeds": [1, 1]}, "each once"),
    ({"seeds": 0}, "seeds: got 0"),
    ({"metric": "acc"}, "metric: got 'acc', need one of accuracy, loss"),
    ({"margin": 0}, "margin: got 0"),
    ({"runs_dir": ""}, "runs_dir: got '', need a folder"),
    ({"name": ".."}, "name: got the name '..'"),
    ({"recipes": {"a b": "fp32", "a-b": "int8"}}, "'a b' .* and 'a-b' .* have one folder, 'a-b'"),
    (
        {"model": {"z": "mlp", "y z": "mlp"}, "recipes": {"x": "fp32", "x y": "int8"}},
        "'x y z' .'x y' of 'z'. and 'x y z' .'x' of 'y z'. have one folder",
    ),
    ({"recipes": {"a": {"holdout": 0.1}, "b": "int8"}}, "holdout is 0.1 of 'a', None of 'b'"),
    ({"recipes": {"a": "fp32", "b": {"data_dir": "x"}}}, "data_dir is None of 'a', 'x' of 'b'"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_what_is_no_study_is_refused(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"model": "mlp", "recipes": ["fp32", "int8"], **change}
    with pytest.raises((ValueError, TypeError), match=said):
        planned(**given)


def test_seeds_come_first_and_models_are_compared_within(tmp_path: Path) -> None:
    plan = planned({"a": "mlp", "b": "resnet20"}, ["fp32", "int8"], seeds=2, primary=["int8"])
    assert [job.text for job in plan.jobs()][:5] == [
        "fp32 a, seed 0", "int8 a, seed 0", "fp32 b, seed 0", "int8 b, seed 0", "fp32 a, seed 1",
    ]  # fmt: skip
    assert planned("mlp", ["fp32", "int8"], primary=["int8", "int8"]).primary == ("int8",)
    assert planned("mlp", ["fp32", "int8"], primary="int8").primary == ("int8",)
    assert plan.rivals()["b"] == ("fp32 b", ["fp32 b", "int8 b"], ["int8 b"])
    names = {job.config.run_name for job in plan.jobs()}
    assert len(names) == 8 and "int8-b-seed1" in names
    assert planned("chartransformer", ["fp32", "int8"], data="text").metric == "loss"


def test_a_file_says_what_a_call_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('model: mlp\nrecipes: {a: null, b: {recipe: int8, bits: 4}}\nbudget: "8m"\n')
    assert load_study(path) == {
        "model": "mlp", "recipes": {"a": None, "b": {"recipe": "int8", "bits": 4}},
        "budget": "8m", "name": "mine",
    }  # fmt: skip
    path.write_text("model: mlp\nrecipe: int8\n")
    with pytest.raises(ValueError, match=r"mine.yaml: study: got 'recipe'.*mean 'recipes'"):
        load_study(path)
    path.write_text("model: mlp\n")
    with pytest.raises(ValueError, match="has no recipes"):
        load_study(path)
    assert [seconds(text) for text in ("90", "90s", "1.5h", 3, None)] == [90, 90, 5400, 3, None]
    with pytest.raises(ValueError, match="need seconds, or 90s"):
        seconds("8 min")


def test_what_is_held_out_is_a_part_of_the_training_samples_and_no_test_sample() -> None:
    whole = data.load("digits")
    part = held_out(whole, 0.25)
    count = round(len(whole.train) * 0.25)
    assert (len(part.test), len(part.train)) == (count, len(whole.train) - count)
    every = np.arange(len(whole.train))
    images, labels = whole.train.read(every, seed=0, epoch=0, augment=False)

    def rows(split: Any) -> list[bytes]:
        x, y = split.read(np.arange(len(split)), seed=0, epoch=0, augment=False)
        assert torch.equal(y, split.truth)
        return [image.numpy().tobytes() for image in x]

    found = rows(part.train) + rows(part.test)
    assert sorted(found) == sorted(image.numpy().tobytes() for image in images)
    assert len(labels.unique()) == len(part.test.truth.unique())
    assert part.fingerprint() != whole.fingerprint()


def run(arm: str, seed: int, accuracy: float) -> StudyRun:
    return StudyRun(arm=arm, seed=seed, state="finished", accuracy=accuracy, loss=1 - accuracy)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_each_arm_takes_its_best_rate(metric: str) -> None:
    config = {"epochs": 9, "lr": 0.1, "schedule": "step", "milestones": (1, 6, 8), "warmup": 1.0}
    plan = planned("mlp", ["fp32", "int8"], metric=metric, config=config)
    factors = factors_of([2, 0.5, 1])
    first = tuning(plan, factors)
    assert len(first.jobs()) == 12 and {job.seed for job in first.jobs()} == {1000, 1001}
    one = first.jobs()[0].config
    assert (one.epochs, one.holdout, one.lr, one.milestones) == (5, 0.1, 0.05, (1, 3, 4))
    assert one.warmup == pytest.approx(5 / 9) and one.runs_dir.endswith("/tuning")
    values = {"fp32 x0.5": 0.5, "fp32 x1": 0.9, "fp32 x2": 0.9, "int8 x0.5": 0.7, "int8 x1": 0.6,
              "int8 x2": 0.1}  # fmt: skip
    runs = [run(arm, seed, value) for arm, value in values.items() for seed in (1000, 1001)]
    chosen = tuned(plan, factors, runs)
    assert chosen is not None and chosen.factors == {"fp32": 1.0, "int8": 0.5}
    assert "int8 x0.5 (the last of those tried)" in chosen.note
    assert [arm.config.lr for arm in at_rates(plan, chosen).arms] == [0.1, 0.05]
    assert tuned(plan, factors, [*runs[:-1], replace(runs[-1], state="unfinished")]) is None


def test_rates_that_choose_nothing_are_refused() -> None:
    for rates in ([1], [1, 1], [0, 1]):
        with pytest.raises(ValueError, match="rates: got"):
            factors_of(rates)
    held = planned("mlp", ["fp32", "int8"], config={"holdout": 0.2})
    with pytest.raises(ValueError, match=r"rates: got them beside holdout=0.2"):
        tuning(held, (1, 2))


def test_tuning_is_a_study_of_its_own(tmp_path: Path) -> None:
    asked: list[Plan] = []

    class Refuses:
        at_once = 1

        def start(self, job: Job) -> Any:
            asked.append(job)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt, match="0 of 8 runs are done"):
        study(
            net, ["fp32", "int8"], rates=(1, 2), config=FAST, runs_dir=str(tmp_path), name="s",
            executor=Refuses(), say=quiet,
        )  # fmt: skip
    assert asked[0].config.run_name == "fp32-x1-seed1000"  # type: ignore[attr-defined]

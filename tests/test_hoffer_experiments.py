"""The experiments on "Norm matters": runs repeat, resume and fail as they say; the claims' rule."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.harness import claims, images, report, runs
from experiments.hoffer2018 import (
    bounded_norm,
    constant,
    deviations,
    half_norm,
    lp_norm,
    range_norm,
    run_all,
    weight_decay,
)
from experiments.hoffer2018 import claims as hoffer_claims


def tiny(**changes: Any) -> Any:
    """Experiment 1, three of its arms, on 100 digits."""
    own = weight_decay.EXPERIMENT
    setting = replace(
        own.settings["here"],
        **{"width": 2, "images": 100, "epochs": 3, "milestones": (2,), "batch": 20, "every": 2},
        **changes,
    )
    arms = {arm: own.arms[arm] for arm in ("on", "off", "correction")}
    return replace(own, arms=arms, settings={"here": setting})


def options(folder: Path, *more: str) -> Namespace:
    return images.parser("", __file__).parse_args(
        ["--data", "digits", "--output", str(folder), *more]
    )


def execute(experiment: Any, args: Namespace) -> Any:
    return runs.execute(experiment, args)


def test_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    experiment = tiny()
    experiment = replace(experiment, arms={a: "" for a in ("on", "off")})
    one = execute(experiment, options(tmp_path / "one", "--seeds", "1"))
    two = execute(experiment, options(tmp_path / "two", "--seeds", "1", "--jobs", "2"))
    assert one["runs"] == two["runs"] and len(one["runs"]) == 2
    files = [tmp_path / name / "weight_decay-here.json" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [p.name for p in files[0].parent.iterdir()] == [files[0].name]  # what it kept is gone


def test_a_curve_has_a_row_an_epoch_and_the_evaluations_it_asked_for(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    result = execute(tiny(), options(tmp_path, "--seeds", "1"))
    assert torch.get_num_threads() == threads and result["environment"]["threads"] == "1"
    on, off, correction = result["runs"]
    assert on["epochs"]["epoch"] == [1, 2, 3]
    assert [value is None for value in on["epochs"]["accuracy"]] == [True, False, False]
    rates = [run["epochs"]["effective_rate"] for run in (on, off, correction)]
    assert rates[0] == pytest.approx(rates[2])  # what eq. 4 is for
    assert rates[1][-1] < rates[0][-1]


def counted(experiment: Any, stop: int | None = None) -> tuple[Any, list[tuple[str, int]]]:
    """The experiment, and the runs it began; the `stop`-th is interrupted."""
    begun: list[tuple[str, int]] = []

    def run(job: Any) -> Any:
        begun.append((job.arm, job.seed))
        if len(begun) == stop:
            raise KeyboardInterrupt
        return experiment.run(job)

    return replace(experiment, run=run), begun


def test_a_resumed_experiment_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    args = options(tmp_path / "whole", "--seeds", "2")
    execute(tiny(), args)
    whole = (args.output / "weight_decay-here.json").read_bytes()
    stopped, begun = counted(tiny(), stop=4)
    args = options(tmp_path / "parts", "--seeds", "2")
    with pytest.raises(KeyboardInterrupt):
        execute(stopped, args)
    path = args.output / "weight_decay-here.json"
    assert len(json.loads(path.read_text())["runs"]) == 3
    resumed, rest = counted(tiny())
    execute(resumed, args)
    assert path.read_bytes() == whole
    assert sorted({*begun, *rest}) == sorted([*begun[:3], *rest])  # none was done twice
    again, nothing = counted(tiny())
    execute(again, args)
    assert not nothing


def test_a_run_is_repeated_where_what_it_kept_is_gone(tmp_path: Path) -> None:
    args = options(tmp_path, "--seeds", "1")
    whole = execute(tiny(), args)
    path = tmp_path / "weight_decay-here.json"
    before = path.read_bytes()
    part = {**whole, "runs": [run for run in whole["runs"] if run["arm"] != "correction"]}
    path.write_text(json.dumps(part))
    again, begun = counted(tiny())
    execute(again, args)
    assert begun == [("on", 0), ("correction", 0)] and path.read_bytes() == before


def test_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    execute(tiny(), options(tmp_path, "--seeds", "1", "--epochs", "1"))
    with pytest.raises(SystemExit, match=r"not to be compared with these: setting: then .*another"):
        execute(tiny(), options(tmp_path, "--seeds", "1"))


def test_finished_runs_are_redrawn_on_another_machine_but_none_is_added(tmp_path: Path) -> None:
    whole = execute(tiny(), options(tmp_path, "--seeds", "1"))
    path = tmp_path / "weight_decay-here.json"
    held = json.loads(path.read_text())
    assert whole["paper"] and not {"paper", "published"} & held.keys()
    held["environment"]["processor"] = "another"
    path.write_text(json.dumps(held))
    again, begun = counted(tiny())
    assert execute(again, options(tmp_path, "--seeds", "1"))["runs"] == held["runs"] and not begun
    with pytest.raises(SystemExit, match=r"with these: processor \(then another, now .*another"):
        execute(again, options(tmp_path, "--seeds", "2"))
    assert not begun
    mixed = execute(again, options(tmp_path, "--seeds", "2", "--mix-machines"))["runs"]
    assert begun == [("on", 1), ("off", 1), ("correction", 1)]
    assert all(("another" in run["on"]) == (run["seed"] == 0) for run in mixed)
    held["environment"]["torch"] = "another"
    path.write_text(json.dumps(held))
    with pytest.raises(SystemExit, match=r"with these: torch \(then another"):
        execute(again, options(tmp_path, "--seeds", "2", "--mix-machines"))


def test_a_run_that_diverges_is_marked_and_the_others_go_on(tmp_path: Path) -> None:
    result = execute(tiny(rate=1e20), options(tmp_path, "--seeds", "1"))
    on, off, correction = result["runs"]
    assert "the loss is" in on["failed"] and "the loss is" in off["failed"]
    assert correction["failed"] == "needs on-seed0, which failed"
    assert "0 (1 failed)" in report.table(result)
    report.publish(result, tmp_path, beside="effective_rate", label="rate")
    assert "on (failed)" in (tmp_path / "weight_decay-here.svg").read_text()
    json.loads((tmp_path / "weight_decay-here.json").read_text(), parse_constant=pytest.fail)


def test_a_process_that_breaks_is_an_error_with_its_traceback(tmp_path: Path) -> None:
    experiment = tiny()
    experiment = replace(experiment, arms={"on": ""})
    args = options(tmp_path, "--seeds", "1", "--jobs", "2", "--batch", "1000")
    with pytest.raises(SystemExit, match=r"(?s)on, seed 0: .*batch_size: got 1000"):
        execute(experiment, args)


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^imagefolder: no folder given"):
        range_norm.main(["--output", str(tmp_path)])


def result(one: list[float | None], two: list[float | None]) -> dict[str, Any]:
    """Results of arms "one" and "two", a seed each; None: the run failed."""
    runs = [
        {"arm": arm, "seed": seed, "failed": None if value is not None else "epoch 1",
         "epochs": {"epoch": [1], "accuracy": [value]} if value is not None else {}}
        for arm, values in (("one", one), ("two", two))
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return {"runs": runs, "metric": "accuracy", "arms": {"one": "", "two": ""}, "reference": "two"}


CASES: dict[str, tuple[str, list[float | None], list[float | None], str]] = {
    # d = -5 +- 2.48, 4.30 * 1 / sqrt(3)
    "surely below": ("below", [64, 65, 66], [70, 70, 70], "holds"),
    "surely above": ("below", [74, 75, 76], [70, 70, 70], "does not hold"),
    "too wide": ("below", [60, 75, 66], [70, 70, 70], "does not show"),
    "one seed": ("below", [64], [70], "does not show"),
    "diverged is below": ("below", [None, None], [70, 70], "holds"),
    "one diverged": ("below", [None, 64, 65], [70, 70, 70], "does not show"),
    "both diverged": ("below", [None, None], [None, None], "does not show"),
    "alike": ("alike", [70.1, 70.2, 70.3], [70, 70, 70], "holds"),
    "not alike": ("alike", [64, 65, 66], [70, 70, 70], "does not hold"),
    "perhaps alike": ("alike", [69, 70, 71], [70, 70, 70], "does not show"),
    "nearly alike": ("alike", [69.0, 69.1, 68.9], [70, 70, 70], "does not show"),
    "diverged is not alike": ("alike", [None, None], [70, 70], "does not hold"),
    "all fail": ("fails", [None, None], [70, 70], "holds"),
    "none fails": ("fails", [70, 10], [70, 70], "does not hold"),
    "some fail": ("fails", [None, 70], [70, 70], "does not show"),
    "no run": ("fails", [], [70, 70], "does not show"),
}


@pytest.mark.parametrize("name", CASES)
def test_verdicts_follow_the_stated_rule(name: str) -> None:
    says, one, two, expected = CASES[name]
    claim = claims.Claim(
        experiment="x", text="t", paper="p", arm="one", other="two", says=says, within=1.0
    )
    own = result(one, two)
    assert claims.verdict(claim, own) == expected
    assert claims.row(claim, own)[-1] == expected
    assert claims.row(claim, None)[2] == "not run"


def test_every_claim_names_arms_of_its_experiment() -> None:
    every = [module.EXPERIMENT for module in run_all.ON_IMAGES]
    known = {one.name: one for one in (*every, lp_norm.TRANSFORMER, lp_norm.LSTM)}
    for claim in hoffer_claims.CLAIMS:
        assert {claim.arm, claim.other} <= known[claim.experiment].arms.keys()
    for experiment in known.values():
        assert experiment.reference in experiment.arms
        assert experiment.paper.keys() <= experiment.arms.keys()
        assert experiment.settings.keys() == {"here", "paper"}


def test_one_command_runs_all_and_writes_the_table_of_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{claims.BEGIN}\nstale\n{claims.END}\nafter\n")
    monkeypatch.setattr(hoffer_claims, "README", readme)
    monkeypatch.setattr(run_all, "ON_IMAGES", (range_norm,))
    text_file = tmp_path / "words.txt"
    text_file.write_text("to be or not to be, that is the question. " * 40)
    for experiment in ("TRANSFORMER", "LSTM"):
        own = getattr(lp_norm, experiment)
        here = replace(own.settings["here"], width=8, batch=4)
        arms = {arm: own.arms[arm] for arm in ("l2", "linf")}
        small = replace(own, settings={"here": here}, arms=arms)
        monkeypatch.setattr(lp_norm, experiment, small)
    arguments = ["--data", "digits", "--epochs", "1", "--seeds", "2", "--output", str(tmp_path),
                 "--text-dir", str(text_file)]  # fmt: skip
    run_all.main(arguments)
    text = readme.read_text()
    assert text.startswith(f"before\n{claims.BEGIN}") and text.endswith(f"{claims.END}\nafter\n")
    assert "stale" not in text
    run = {"range_norm", "lp_transformer", "lp_lstm"}
    assert text.count("not run") == sum(c.experiment not in run for c in hoffer_claims.CLAIMS)
    assert (tmp_path / "range_norm-here.svg").exists()
    assert "minus batch_norm, 95 % interval" in capsys.readouterr().out
    run_all.main(arguments)  # from the results that are there
    assert readme.read_text() == text
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match=r"need the lines <!-- claims"):
        hoffer_claims.main(["--output", str(tmp_path)])


def test_norms_in_fp16_train_and_are_drawn_against_the_scale(
    folder: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {arm: "" for arm in ("fp32", "l2 2^0", "l1 2^0", "l2 2^12", "l1 2^12", "l1 plain sums")}
    monkeypatch.setattr(half_norm, "EXPERIMENT", replace(half_norm.EXPERIMENT, arms=arms))
    monkeypatch.setattr(half_norm, "SCALES", (0, 12))
    half_norm.main(
        ["--scale", "paper", "--data-dir", folder(72), "--seeds", "1", "--epochs", "1", "--batch",
         "4", "--network", "resnet10", "--output", str(tmp_path)]
    )  # fmt: skip
    result = json.loads((tmp_path / "half_norm-paper.json").read_text())
    losses = {run["arm"]: run["epochs"]["train_loss"][0] for run in result["runs"]}
    # the first step's loss is that of the same network, up to the norms' arithmetic
    assert losses["l1 2^12"] == pytest.approx(losses["l1 2^0"], rel=0.01)
    assert losses["l2 2^0"] == pytest.approx(losses["fp32"], rel=0.01)
    assert abs(losses["l2 2^12"] - losses["fp32"]) > 0.02 * losses["fp32"]
    assert (tmp_path / "half_norm-paper.svg").exists()


def test_a_norm_alone_is_worst_where_squares_leave_fp16() -> None:
    def alone(name: str, k: int) -> dict[str, float]:
        recipe = half_norm.recipe(half_norm.DEVIATIONS[name], half_norm.fp16, "halved")
        return half_norm.alone(recipe, k)

    assert min(*alone("l1", 0).values(), *alone("l2", 0).values()) > 50
    assert alone("l1", 8)["output"] > 50 and alone("l2", 8)["output"] == 0
    # squares leave FP16 before they are summed: FP32 sums do not save them
    wide = half_norm.recipe(half_norm.DEVIATIONS["l2"], half_norm.fp32, "plain")
    assert half_norm.alone(wide, 0)["output"] > 50 and half_norm.alone(wide, 8)["output"] == 0


@pytest.mark.parametrize(
    "script",
    [weight_decay, deviations, constant, bounded_norm, range_norm],
    ids=lambda script: script.EXPERIMENT.name,
)
def test_the_papers_setting_starts_on_a_folder_of_images(
    script: Any, folder: Callable[[int], str], tmp_path: Path
) -> None:
    """Large images are streamed from their files; what is overridden is in the results."""
    name = script.EXPERIMENT.name
    small = script is weight_decay
    arguments = ["--scale", "paper", "--data-dir", folder(32 if small else 72), "--seeds", "1",
                 "--epochs", "1", "--batch", "4", "--output", str(tmp_path)]  # fmt: skip
    if not small:
        arguments += ["--network", "resnet10"]
    script.main(arguments)
    result = json.loads((tmp_path / f"{name}-paper.json").read_text())
    assert [run["failed"] for run in result["runs"]] == [None] * len(script.EXPERIMENT.arms)
    assert (result["setting"]["epochs"], result["setting"]["batch"]) == (1, 4)
    assert result["setting"]["network"] == ("vgg11" if small else "resnet10")
    assert (tmp_path / f"{name}-paper.svg").exists()

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from training_cases import quiet, small, start

from qtrain import cli, recipes
from qtrain.cli import main
from qtrain.cli_arguments import build_parser
from qtrain.training.config import TrainConfig
from qtrain.training.flags import _GROUPS, train_settings
from qtrain.training.named import training_recipe
from qtrain.training.train import train
from quantizers.formats import NAMED


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    try:
        status = main(arguments)
    except SystemExit as error:
        assert isinstance(error.code, int)
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


BAD = [
    ("train int9", "'int8'"),
    ("train int8-resnet19", "'int8-resnet18'"),
    ("train int8 --bits 0", "2 to 16"),
    ("train int8 --bits 17", "2 to 16"),
    ("train int8 --bits 7.5", "7.5"),
    ("train int8 --bits True", "True"),
    ("train int8 --bits eight", "eight"),
    ("train fp32 --bits 8", "bits"),
    ("train int8 --epochs -1", "epochs: got -1"),
    ("train int8 --epochs", "epochs"),
    ("train int8 --batch-size 0", "batch_size: got 0"),
    ("train int8 --lr nan", "lr: got nan"),
    ("train int8 --seed 1.5", "seed: got 1.5"),
    ("train int8 --seed one", "seed: got 'one'"),
    ("train int8 --epoch 3", "did you mean --epochs"),
    ("train int8 --milestones 2 x --schedule step", "'x'"),
    ("train int8 --model vgg", "vgg"),
    ("train int8 --data cifar10", "data_dir"),
    ("train int8 --data cifar10 --data-dir /no/such/folder", "/no/such/folder"),
    ("train int8 --data digits --data-dir .", "data_dir"),
    ("train int8 --batch-size 100000 --model mlp --runs-dir {tmp} --epochs 1 --device cuda:99",
     "cuda:99"),
    ("train int8 --runs-dir {tmp}/file", "file"),
    ("train", "recipe"),
    ("diagnose {tmp}/none --data digits", "but no --gradient to use it"),
    ("train int8 --learning-rate 1", "did you mean --lr?"),
    ("recommend {tmp}/none.pt --by rol", "need one of role, layer, product; did you mean 'role'?"),
    ("train int8 --data cifar10", "cifar-10-python.tar.gz"),
    ("train int8 --data mnist", "train-images"),
    ("train int8 --model resnet81", "need one of resnet18,"),
    ("trian int8", "did you mean 'train'?"),
    ("train int8 --name /dev/null", "name"),
    ("train int8 --runs-dir /dev/null --model mlp", "runs_dir"),
    ("train int8 --lr 1e300 --overwrite", "lr: got 1e+300"),
    ("inspect {tmp}/none.pt --sav=x.csv", "did you mean --save"),
    ("inspect {tmp}/none.pt", "none.pt"),
    ("inspect {tmp}", "checkpoint.pt"),
    ("inspect {tmp}/file", "file"),
    ("cost {tmp}/none.pt", "none.pt"),
    ("cost {tmp}/none.pt --worst 3", "--worst"),
    ("sensitivity {tmp}/none.pt", "none.pt"),
    ("recommend {tmp}/none.pt --to 8", "none.pt"),
    ("diagnose {tmp}/none --gradient", "checkpoint.pt"),
    ("compare {tmp} {tmp}", "config.json, environment.json, metrics.jsonl missing"),
    ("compare {tmp}", "run_b"),
    ("", "command"),
    ("train {tmp}/none.yaml", "none.yaml is no file"),
    ("train int8 --switch 0.5:{tmp}/none.yaml", "none.yaml is no file"),
    ("train int8 --switch 0.5", "switch: got '0.5', need when and the name of a recipe"),
    ("train int8 --switch 0.5:", "switch: got '0.5:', need when and the name of a recipe"),
    ("train int8 --recipe mine.yaml", "comes first: qtrain train mine.yaml"),
    ("train int8 --overrides fc=bf16", "in Python, quantize(model, overrides={pattern: recipe})"),
    ("train int8 --override fc=bf16", "in Python, quantize(model, overrides={pattern: recipe})"),
    ("train nvfp5", "qtrain recipes` lists, or a .yaml file; did you mean 'nvfp4'?"),
    ("recipes nvfp", "'nvfp4'"),
    ("recipes {tmp}/none.yml", "none.yml is no file"),
    ("recipes --save x.yaml", "say which recipe"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "named"), BAD, ids=[line[:40] for line, _ in BAD])
def test_bad_input_gives_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, named: str
) -> None:
    (tmp_path / "file").write_text("no checkpoint")
    status, out, err = run(capsys, *line.format(tmp=tmp_path).split())
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and "error: " in err and named in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_field_is_a_flag_and_every_flag_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    names = [field.name for field in fields(TrainConfig) if field.name != "recipe"]
    status, out, _ = run(capsys, "train", "--help")
    found = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", out, re.MULTILINE)) - {"--help"}
    assert status == 0 and found == {"--" + name.replace("_", "-") for name in names}


def test_flags_reach_the_configuration() -> None:
    line = (
        "train int8-resnet18 --bits 4 --model mlp --epochs 3 --lr 1 --no-baseline --seed 7 "
        "--schedule step --milestones 1 2 --resume --clip-grad 0.5 --name 12 --nesterov"
    )
    parsed = build_parser().parse_args(line.split())
    config = training_recipe(parsed.recipe, **train_settings(parsed))
    assert config == training_recipe(
        "int8-resnet18", bits=4, model="mlp", epochs=3, lr=1, baseline=False, seed=7,
        schedule="step", milestones=(1, 2), resume=True, clip_grad=0.5, name="12", nesterov=True,
    )  # fmt: skip
    assert (config.norm, config.activation) == ("range", "fp16")


def test_training_prints_the_tables_and_where_everything_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = f"train int8 --model mlp --epochs 1 --batch-size 256 --name x --runs-dir {tmp_path}"
    status, out, err = run(capsys, *line.split())
    assert status == 0, err
    for part in ("accuracy gap", "SQNR", str(tmp_path / "x")):
        assert part in out
    assert "epoch 1/1" in err and "\r" not in err  # lines, no bar: stderr is no terminal
    status, out, err = run(capsys, *line.split())
    assert status == 2 and "--resume" in err and "--overwrite" in err


def test_a_failed_run_has_status_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = (
        "train int8 --model mlp --epochs 2 --batch-size 256 --lr 1e12 --warmup 0 --threads 1 "
        f"--schedule constant --runs-dir {tmp_path}"
    )
    status, _, err = run(capsys, *line.split())
    assert status == 1
    assert "step" in err and "layer" in err and "role" in err and "Traceback" not in err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that its readers leave as it is."""
    folder = tmp_path_factory.mktemp("runs")
    train(small(folder, epochs=1), say=quiet)
    return folder / "run" / "checkpoint.pt"


@pytest.mark.parametrize("command", ["", *cli._COMMANDS])
def test_every_help_has_examples_that_are_accepted(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    status, out, _ = run(capsys, *command.split(), "--help")
    _, title, examples = out.rpartition("examples:\n" if command else "where to begin:\n")
    assert status == 0 and title
    lines = [line.split("  ")[1] for line in examples.splitlines() if line.startswith("  ")]
    assert lines
    for line in lines:
        first, *words = line.split()
        assert first == "qtrain" and build_parser().parse_args(words).command in (command or words)


def test_flags_of_training_are_in_groups_and_show_their_choices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = run(capsys, "train", "--help")
    titles = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert titles == ["positional arguments", "options", *_GROUPS.values(), "examples"]
    assert "--schedule {cosine,step,constant}" in out and "resnet56" in out and "--epochs N" in out


def test_a_setting_that_there_is_none_of_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"got epoch=1, .*; did you mean 'epochs'?"):
        training_recipe("int8", epoch=1)


def test_runs_of_values_given_in_python_are_read_in_the_shell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    train(small(tmp_path, epochs=1), model=network, say=quiet)
    path = str(tmp_path / "run" / "checkpoint.pt")
    status, _, err = run(capsys, "inspect", path)
    assert status == 2 and "--model file.py:function" in err
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\n\n\ndef make():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    status, out, err = run(capsys, "inspect", path, "--model", f"{own}:make", "--data", "digits")
    assert status == 0 and "grad_weight" in out, err
    status, _, err = run(capsys, "inspect", path, "--model", "resnet81")
    assert status == 2 and "'resnet18'" in err


def test_inspect_prints_and_saves(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    path = checkpoint
    status, whole, _ = run(capsys, "inspect", str(path), "--save", str(tmp_path / "e.csv"))
    assert status == 0 and "grad_weight" in whole
    assert (tmp_path / "e.csv").read_text().startswith("layer,role")
    status, worst, _ = run(capsys, "inspect", str(path), "--worst", "2", "--device", "cpu")
    assert status == 0 and 2 < len(worst.splitlines()) < len(whole.splitlines())
    for more in (("--worst", "0"), ("--worst", "two"), ("--save", str(tmp_path / "e.xls")),
                 ("--save", "/no/such/e.csv"), ("--lr=3",)):  # fmt: skip
        status, _, err = run(capsys, "inspect", str(path), *more)
        assert status == 2 and err.count("\n") == 1 and more[0].strip("-") in err, err
        assert "did you mean" not in err


def test_inspect_accumulates_and_draws(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    path, drawn = str(checkpoint), tmp_path / "e.svg"
    status, out, _ = run(capsys, "inspect", path, "--accumulated", "--plot", str(drawn))
    assert status == 0 and "- grad_output " in out and "grad_output (grad_input)" not in out
    assert drawn.read_text().startswith("<?xml")
    for where in ("/no/such/e.png", str(tmp_path / "e.pdf")):
        status, _, err = run(capsys, "inspect", path, "--plot", where)
        assert status == 2 and err.count("\n") == 1 and "plot: " in err


def test_cost_prints_and_saves(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    path, saved = checkpoint, tmp_path / "c.csv"
    status, out, err = run(capsys, "cost", str(path), "--save", str(saved), "--device", "cpu")
    assert err.endswith(f"wrote {saved}\n")
    assert status == 0 and "grad_weight" in out and "fp32" in out
    assert saved.read_text().startswith("layer,product")
    for more in (("--save", "/no/such/c.csv"), ("--save", str(tmp_path / "c.xls"))):
        status, _, err = run(capsys, "cost", str(path), *more)
        assert status == 2 and err.count("\n") == 1 and "save" in err


def test_sensitivity_prints_ranks_and_saves(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    line = ("sensitivity", str(checkpoint), "--device", "cpu")
    saved = tmp_path / "s.csv"
    status, whole, _ = run(capsys, *line, "--save", str(saved))
    assert status == 0 and "grad_weight" in whole and "in full precision" in whole
    assert saved.read_text().startswith("layer,part,module,gain_cosine")
    status, worst, _ = run(capsys, *line, "--by", "layer", "--worst", "2")
    assert status == 0 and len(worst.splitlines()) < len(whole.splitlines())
    for more in (("--by", "layers"), ("--worst", "0"), ("--save", str(tmp_path / "s.xls"))):
        status, _, err = run(capsys, *line, *more)
        assert status == 2 and err.count("\n") == 1 and more[0].strip("-") in err, err


def test_recommend_prints_and_saves_a_recipe_that_trains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train(small(tmp_path, epochs=1, bits=4), say=quiet)
    line = ("recommend", str(tmp_path / "run" / "checkpoint.pt"), "--device", "cpu", "--to", "8")
    saved = tmp_path / "wider.yaml"
    status, out, _ = run(capsys, *line, "--save", str(saved))
    assert status == 0 and "8 bits in all layers" in out and "measured" in out
    status, _, err = run(capsys, "train", str(saved), "--model", "mlp", "--epochs", "1",
                         "--runs-dir", str(tmp_path / "runs"))  # fmt: skip
    assert status == 0, err
    status, out, _ = run(capsys, *line, "--each", "--cosine", "0.97")
    assert status == 0 and "single roles" in out
    for more in (("--each", "--save", str(saved)), ("--by", "layers"), ("--cosine", "2")):
        status, _, err = run(capsys, *line, *more)
        assert status == 2 and err.count("\n") >= 1 and more[0 if len(more) < 3 else 1][2:] in err


def test_recipes_and_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "recipes")
    assert status == 0 and all(name in out for name in [*recipes.names(), "int8-resnet18"])
    status, out, _ = run(capsys, "formats")
    assert status == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert set(NAMED) <= set(rows)
    assert rows["e4m3"][1:] == ["8", "448", "0.015625", "0.00195312", "no", "yes", "saturate"]


@pytest.mark.parametrize("name", [*recipes.names(), "int8-resnet18"])
def test_a_recipe_is_shown_in_full(capsys: pytest.CaptureFixture[str], name: str) -> None:
    status, out, _ = run(capsys, "recipes", name)
    recipe = recipes.get(name.removesuffix("-resnet18"))
    words = " ".join(out.split())
    assert status == 0 and all(product in out for product in ("forward.input", "grad_weight.input"))
    for said in (name, recipe.when, recipe.source, recipe.leaves_out):
        assert said in words
    for quantizer in (recipe.forward.input, recipe.grad_weight.grad_output):
        assert str(quantizer) in words


def test_a_recipe_is_saved_shown_and_trained_from_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, late = tmp_path / "mine.yaml", tmp_path / "late.yml"
    status, *_ = run(capsys, "recipes", "fp8", "--save", str(path))
    path.write_text(path.read_text().replace("name: fp8", "name: mine"))
    late.write_text("name: later\nforward: {input: {format: e4m3, granularity: blocks(32)}}\n")
    assert status == 0 and run(capsys, "recipes", str(path))[1].startswith("mine: Ada and Hopper")
    line = f"train {path} --switch 0.5:{late} --model mlp --epochs 2 --batch-size 256 --runs-dir"
    status, _, err = run(capsys, *line.split(), str(tmp_path / "runs"))
    assert status == 0 and "mine, later from 0.5: loss" in err
    path.unlink(), late.unlink()  # a run needs no file
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "mine-later@0.5-mlp-digits-seed0"
    for command in ("inspect", "cost", "sensitivity"):
        status, _, err = run(capsys, command, str(folder / "checkpoint.pt"))
        assert status == 0, err
    assert run(capsys, "compare", str(folder), str(folder))[0] == 0


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--version")
    assert status == 0 and out.startswith("qtrain ")
    status, out, _ = run(capsys, "train", "--help")
    assert status == 0 and "--label-smoothing" in out


def test_the_command_itself_shows_no_traceback() -> None:
    code = "import sys; from qtrain.cli import main; sys.exit(main())"
    process = start(code, "train", "int8", "--lr", "-1")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.count("\n") == 1 and "lr: got -1" in err


def test_no_memory_is_one_line_and_other_errors_of_ours_are_not_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "recipes_table", lambda: torch.empty(2**60))
    status, _, err = run(capsys, "recipes")
    assert status == 1 and err.count("\n") == 1 and "smaller batch_size" in err
    monkeypatch.setattr(cli, "recipes_table", lambda: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        run(capsys, "recipes")


def test_a_reader_that_leaves_early_gets_no_complaint() -> None:
    code = "import sys, qtrain.cli; sys.exit(qtrain.cli.main())"
    process = start(code, "recipes")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=120)) == ("", 141)
    process.stderr.close()


def test_the_shell_leaves_torch_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    run(capsys, "recipes")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "int8", "resnet20"), "did you mean --model resnet20?"),
        (("train", "int8", "bf16-kahan"), "did you mean --update bf16-kahan?"),
        (("train", "int8", "fp8"), "a run has one recipe, and those it switches to"),
        (("inspect", "a.pt", "b.pt"), "unknown argument 'b.pt'; there is one argument too many"),
    ],
)
def test_a_word_too_many_is_answered_with_its_flag(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words])
    assert said in capsys.readouterr().err

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from qtrain import recipes, save_recipe
from qtrain.training.config import TrainConfig
from qtrain.training.named import training_recipe
from qtrain.training.trainee import build_optimizer, learning_rate, parameter_groups

BAD = [
    ("recipe", "int9", "int8"),
    ("recipe", None, "None"),
    ("bits", 0, "2 to 16"),
    ("bits", 1, "2 to 16"),
    ("bits", 17, "2 to 16"),
    ("bits", 7.5, "7.5"),
    ("bits", True, "True"),
    ("bits", "eight", "eight"),
    ("norm", "rang", "'range'"),
    ("activation", "fp17", "'fp16'"),
    ("accumulator", "fp16", "need sequential(fp16)"),
    ("accumulator", "integer(24, overflow=wrap)", "grad_weight.accumulator"),
    ("accumulator", 16, "need a string"),
    ("model", "resnet19", "'resnet18'"),
    ("data", "digit", "'digits'"),
    ("zero_init_residual", 1, "True or False"),
    ("data_dir", 3, "3"),
    ("epochs", -1, "from 1"),
    ("epochs", 0, "from 1"),
    ("batch_size", 0, "from 1"),
    ("batch_size", 2.5, "2.5"),
    ("optimizer", "sdg", "'sgd'"),
    ("schedule", "cosin", "'cosine'"),
    ("lr", float("nan"), "above 0"),
    ("lr", float("inf"), "above 0"),
    ("lr", 0.0, "above 0"),
    ("lr", -0.1, "above 0"),
    ("lr", "fast", "above 0"),
    ("momentum", 1.0, "below 1"),
    ("weight_decay", -1.0, "at least 0"),
    ("label_smoothing", 1.0, "below 1"),
    ("clip_grad", 0.0, "above 0"),
    ("warmup", -1.0, "at least 0"),
    ("seed", 1.5, "1.5"),
    ("seed", True, "True"),
    ("seed", "zero", "zero"),
    ("seed", -1, "from 0"),
    ("seed", 2**63, "from 0"),
    ("device", "tpu", "cuda"),
    ("device", "cuda:", "cuda"),
    ("device", "cuda:999999999999", "cuda:N"),
    ("device", "cuda:100", "up to 99"),
    ("device", "cuda:01", "cuda:N"),
    ("device", "cuda:\u0661", "cuda:N"),
    ("threads", 1025, "to 1024"),
    ("workers", 10**20, "to 256"),
    ("epochs", 10**7, "to 1000000"),
    ("epochs", 10**5000, "16610 bits"),
    ("image_size", 7, "from 8"),
    ("image_size", 1025, "to 1024"),
    ("context", 1, "from 2"),
    ("context", 65537, "to 65536"),
    ("lr", 1e300, "below 3.4e+38"),
    ("lr", 10**400, "below 3.4e+38"),
    ("weight_decay", 1e300, "below 3.4e+38"),
    ("gamma", 0.5, "only 'step'"),
    ("gamma", 1e9, "below 1"),
    ("warmup", 9.0, "8 epochs"),
    ("name", "a\nb", "print"),
    ("name", "a\0b", "print"),
    ("name", "a\x1b[2Jb", "print"),
    ("runs_dir", "a\0b", "folder"),
    ("threads", 0, "from 1"),
    ("workers", -1, "from 0"),
    ("checkpoint_every", 0, "from 1"),
    ("milestones", (3,), "step"),
    ("milestones", [3], "tuple"),
    ("baseline", "yes", "True or False"),
    ("name", "../elsewhere", "folder"),
    ("name", "", "folder"),
    ("runs_dir", "", "folder"),
]


@pytest.mark.parametrize(("field", "value", "need"), BAD, ids=[row[0] for row in BAD])
def test_bad_value_is_refused_with_what_was_given_and_what_is_needed(
    field: str, value: Any, need: str
) -> None:
    given: dict[str, Any] = {"recipe": "int8", field: value}
    with pytest.raises((ValueError, TypeError)) as error:
        TrainConfig(**given)
    assert field in str(error.value)
    assert need in str(error.value)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"schedule": "step"}, "milestones"),
        ({"schedule": "step", "milestones": (9,), "epochs": 8}, "milestones"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov"),
        ({"resume": True, "overwrite": True}, "overwrite"),
        ({"recipe": "fp32", "bits": 8}, "bits"),
        ({"model": "vgg11", "zero_init_residual": True}, "zero_init_residual: got True for 'vgg1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "+".join(v),
)
def test_settings_that_exclude_each_other_are_refused(given: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        TrainConfig(**{"recipe": "int8", **given})


def test_configuration_survives_json() -> None:
    config = TrainConfig(recipe="int8", schedule="step", milestones=(2, 4), clip_grad=1.0)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="epoch"):
        TrainConfig.from_dict({"recipe": "int8", "epoch": 3})


def test_the_name_says_what_runs_and_holds_no_time() -> None:
    assert training_recipe("int8-resnet18").run_name == "int8-resnet18-digits-seed0"
    assert training_recipe("int8", bits=4, model="mlp").run_name == "int8-4bit-mlp-digits-seed0"
    assert training_recipe("int8", name="mine").run_name == "mine"


def test_named_run_is_int8_with_range_norm_and_fp16_activations() -> None:
    config = training_recipe("int8-resnet18")
    assert (config.recipe, config.norm, config.baseline) == ("int8", "range", True)
    activation = config.quantization().activation
    assert activation is not None and activation.name == "fp16"
    with pytest.raises(ValueError, match="did you mean 'int8-resnet18'"):
        training_recipe("int8-resnet19")


def test_full_precision_alone_has_no_baseline_unless_asked() -> None:
    assert not training_recipe("fp32").baseline
    assert training_recipe("fp32", baseline=True).baseline


def test_differences_name_the_field_and_skip_where_it_runs() -> None:
    config = TrainConfig(recipe="int8", lr=0.1, threads=2, name="a")
    other = TrainConfig(recipe="int8", lr=0.2, threads=1, name="b", resume=True)
    assert config.differences(other.to_dict()) == ["lr (stored 0.2, now 0.1)"]


def test_a_run_of_before_an_option_had_its_default() -> None:
    config = TrainConfig(recipe="int8")
    stored = config.to_dict()
    for name in ("switch", "zero_init_residual", "capture"):
        stored.pop(name)
    assert config.differences(stored) == []
    other = TrainConfig(recipe="int8", zero_init_residual=True)
    assert other.differences(stored) == ["zero_init_residual (stored False, now True)"]


def test_cosine_warms_up_then_falls_to_zero() -> None:
    config = TrainConfig(recipe="int8", lr=1.0, epochs=4, warmup=1.0)
    rates = [learning_rate(config, step, 10) for step in range(40)]
    assert rates[:10] == pytest.approx([(k + 1) / 11 for k in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_steps_fall_at_milestones_and_constant_stays() -> None:
    steps = TrainConfig(
        recipe="int8", lr=1.0, epochs=4, warmup=0.0, schedule="step", milestones=(2, 3)
    )
    rates = [learning_rate(steps, step, 5) for step in range(20)]
    assert rates == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)
    constant = TrainConfig(recipe="int8", lr=0.3, schedule="constant", warmup=0.0)
    assert {learning_rate(constant, step, 5) for step in range(9)} == {0.3}


def test_a_run_of_warmup_alone_has_a_rate() -> None:
    config = TrainConfig(recipe="int8", lr=1.0, epochs=1, warmup=1.0)
    rates = [learning_rate(config, step, 5) for step in range(5)]
    assert rates == sorted(rates) and max(rates) < 1.0


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0.25), (4, 1.0), (8, 2.0), (200, 2.0)])
def test_the_default_warmup_is_a_quarter_of_the_run_at_most_two(epochs: int, warmup: float) -> None:
    assert TrainConfig(recipe="int8", epochs=epochs).warmup_epochs == warmup


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay(optimizer: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    config = TrainConfig(recipe="int8", optimizer=optimizer, weight_decay=0.1)
    groups = build_optimizer(model, config).param_groups
    assert [len(group["params"]) for group in groups] == [2, 4]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    everything = parameter_groups(model, TrainConfig(recipe="int8", decay_all=True))
    assert len(everything) == 1


def test_a_file_is_kept_as_its_text(tmp_path: Path) -> None:
    path = save_recipe(replace(recipes.fp8(), name="mine"), tmp_path / "a.yaml")
    config = training_recipe(str(path), switch=(f"0.5:{path}",), model="mlp")
    assert TrainConfig(recipe=str(path), switch=config.switch, model="mlp") == config
    path.unlink()
    assert config.quantization() == replace(recipes.fp8(), name="mine")
    assert config.run_name == "mine-mine@0.5-mlp-digits-seed0"
    assert config.label == "mine, mine from 0.5"
    again = TrainConfig.from_dict(config.to_dict())
    assert again == config and again.quantizations() == config.quantizations()
    other = replace(config, recipe=config.recipe.replace("e5m2", "e4m3"))
    (difference,) = other.differences(config.to_dict())
    assert difference == "recipe (stored 'format: e5m2; format: e5m2', now '')"


def test_a_file_of_a_named_recipe_is_that_recipe(tmp_path: Path) -> None:
    path = save_recipe(recipes.int8(), tmp_path / "a.yml")
    config = training_recipe(str(path), bits=4)
    assert config == training_recipe("int8", bits=4)
    assert not training_recipe(str(save_recipe(recipes.fp32(), path))).baseline


def test_a_folder_cannot_have_every_recipes_name(tmp_path: Path) -> None:
    path = save_recipe(replace(recipes.fp8(), name="a/b"), tmp_path / "a.yml")
    with pytest.raises(ValueError, match=r"name: got None, which makes 'a/b-resnet18"):
        training_recipe(str(path))
    assert training_recipe(str(path), name="ab").run_name == "ab"


def test_an_accumulator_is_that_of_every_recipe_of_the_run() -> None:
    words = "sequential(e6m9, chunk=64)"
    config = TrainConfig(recipe="fp8", switch=("0.9:ibm-fp8",), accumulator=words)
    assert config.label == f"fp8, ibm-fp8 from 0.9, sums {words}"
    assert config.run_name == "fp8-ibm-fp8@0.9-sequential-e6m9-chunk-64-resnet18-digits-seed0"
    for _, recipe in config.quantizations().items():
        assert set(recipe.summed_in.values()) == {words}
    assert TrainConfig.from_dict(config.to_dict()) == config

"""A study's plan from what its caller says: values of Python, or a file of the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ... import checks
from ..config import TrainConfig
from ..given import dataset, reference
from ..given import model as given_model
from ..named import training_recipe
from .plan import METRICS, Arm, Plan

#: settings of runs that a study sets itself -> what to say instead
_OWN = {
    "recipe": "recipes", "model": "model", "data": "data", "seed": "seeds", "name": "name",
    "runs_dir": "runs_dir", "resume": "nothing: a study always goes on where it was",
    "overwrite": "nothing: remove the study's folder, or give another name",
    "baseline": "baseline, the name of a recipe",
}  # fmt: skip


def planned(
    model: Any,
    recipes: Any,
    *,
    seeds: int | Iterable[int] = 5,
    data: Any = "digits",
    config: Mapping[str, Any] | None = None,
    baseline: str | None = None,
    metric: str | None = None,
    margin: float = 0.01,
    primary: str | Sequence[str] | None = None,
    name: str | None = None,
    runs_dir: str = "runs",
) -> Plan:
    """The plan of what `study` takes; TypeError or ValueError for what is none."""
    settings = _settings("config", {} if config is None else config)
    every, rules = _models(model), _recipes(recipes)
    data_text = data if isinstance(data, str) else dataset.recorded(data)
    if name is None:
        name = "-".join([*every, reference.short(data_text)])
    _check_folder("name", name)
    if not checks.text("runs_dir", runs_dir).strip():
        raise ValueError(f"runs_dir: got {runs_dir!r}, need a folder; the default is runs")
    arms: list[Arm] = []
    for group, value in every.items():
        text = value if isinstance(value, str) else given_model.recorded(value)
        fixed = {"model": text, "data": data_text, "baseline": False, "resume": True}
        for recipe, changes in rules.items():
            label = f"{recipe} {group}" if len(every) > 1 else recipe
            given = {**fixed, "runs_dir": f"{runs_dir}/{name}", **settings, **changes}
            own = value
            if "model" in changes:  # of this arm alone
                own = changes["model"]
                given["model"] = own if isinstance(own, str) else given_model.recorded(own)
            arm = Arm(
                name=label, recipe=recipe, group=group, config=_config(label, given),
                model=None if isinstance(own, str) else own,
            )  # fmt: skip
            _check_apart(arm, arms)
            arms.append(arm)
    baseline = next(iter(rules)) if baseline is None else baseline
    checks.choice("baseline", baseline, rules)
    main = _primary(primary, rules, baseline)
    if metric is None:
        metric = "loss" if data == "text" else "accuracy"
    column = isinstance(metric, str) and metric.isidentifier()
    if not column or not all(arm.config.hooks for arm in arms):
        checks.choice("metric", metric, METRICS)
    checks.number("margin", margin, low=0, positive=True, hint="0.01 is a point of accuracy")
    return Plan(
        name=name, runs_dir=runs_dir, arms=tuple(arms), seeds=_seeds(seeds), baseline=baseline,
        metric=metric, margin=float(margin),
        primary=main,
        data=None if isinstance(data, str) else data,
    )  # fmt: skip


def _config(arm: str, given: Mapping[str, Any]) -> TrainConfig:
    settings = dict(given)
    recipe = settings.pop("recipe")
    try:
        return training_recipe(recipe, **settings)
    except TypeError as error:
        raise TypeError(f"arm {arm!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"arm {arm!r}: {error}") from error


def _settings(where: str, got: Any) -> dict[str, Any]:
    """Settings of runs; ValueError for one that there is none of, or that the study has."""
    checks.mapping(where, got, "a mapping of a run's settings to values")
    known = [name for name in TrainConfig.__dataclass_fields__ if name not in _OWN]
    for name in got:
        if name in _OWN:
            raise ValueError(f"{where}: got {name!r}, which a study has itself; say {_OWN[name]}")
        if name not in known:
            near = checks.suggestion(name, known)
            raise ValueError(
                f"{where}: got {name!r}, which is no setting of a run{near}; settings are "
                f"{', '.join(known)}"
            )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in got.items()}


def _recipes(got: Any) -> dict[str, dict[str, Any]]:
    """Name -> settings, the recipe among them."""
    if isinstance(got, str):
        got = [got]
    if isinstance(got, Sequence):
        if not all(isinstance(one, str) for one in got):
            checks.refuse("recipes", got, "names, or a mapping of names to recipes")
        if twice := [one for one in dict.fromkeys(got) if got.count(one) > 1]:
            raise ValueError(
                f"recipes: got {twice[0]!r} twice; names are each once, a mapping has two of one "
                f"recipe: {{a: {twice[0]}, b: {{recipe: {twice[0]}, lr: 0.01}}}}"
            )
        got = {one: one for one in got}
    checks.mapping("recipes", got, "a mapping of names to recipes")
    if len(got) < 2:
        raise ValueError(f"recipes: got {len(got)}, need two or more to compare")
    found = {}
    for name, value in got.items():
        own = dict(value) if isinstance(value, Mapping) else {"recipe": value}
        recipe = own.pop("recipe", "fp32")
        _check_folder(f"recipes[{name!r}]", name)
        model = {"model": own.pop("model")} if "model" in own else {}
        rest = _settings(f"recipes[{name!r}]", own) | model
        found[name] = {"recipe": "fp32" if recipe is None else recipe, **rest}
    return found


def _primary(got: Any, recipes: Iterable[str], baseline: str) -> tuple[str, ...]:
    """Recipes, each once; ValueError for one that is none, and for the baseline."""
    rivals = [recipe for recipe in recipes if recipe != baseline]
    if got is None:
        return tuple(rivals)
    found = [got] if isinstance(got, str) else list(checks.iterable("primary", got, "recipes"))
    for one in found:
        if one == baseline:
            raise ValueError(
                f"primary: got {one!r}, the baseline, with which the others are compared; need of "
                f"{', '.join(rivals)}"
            )
        checks.choice("primary", one, rivals)
    return tuple(dict.fromkeys(found))


def _models(got: Any) -> dict[str, Any]:
    """Name -> what `train` takes for it."""
    if not isinstance(got, Mapping):
        text = got if isinstance(got, str) else given_model.recorded(got)
        got = {reference.short(text): got}
    if not got:
        raise ValueError("model: got no model, need one, or a mapping of names to models")
    for name in got:
        _check_folder("model", name)
    return dict(got)


def _check_apart(arm: Arm, others: Sequence[Arm]) -> None:
    """ValueError for an arm that shares a folder with one of the others, or is tested on other
    samples."""
    for other in others:
        if arm.folder == other.folder:
            raise ValueError(
                f"recipes: the arms {other.name!r} ({other.recipe!r} of {other.group!r}) and "
                f"{arm.name!r} ({arm.recipe!r} of {arm.group!r}) have one folder, {arm.folder!r}; "
                f"name one otherwise"
            )
        for name in ("data_dir", "holdout"):
            got = getattr(other.config, name), getattr(arm.config, name)
            if got[0] != got[1]:
                raise ValueError(
                    f"recipes: {name} is {got[0]!r} of {other.name!r}, {got[1]!r} of "
                    f"{arm.name!r}, but all arms are tested on the same samples; say it in config"
                )


def _check_folder(field: str, name: Any) -> None:
    """ValueError for a name that is no part of a folder's name."""
    if not isinstance(name, str) or name.strip(" .") == "" or any(c in name for c in "/\\\n"):
        raise ValueError(f"{field}: got the name {name!r}, need one without slashes, for a folder")


def _seeds(got: int | Iterable[int]) -> tuple[int, ...]:
    if isinstance(got, int) and not isinstance(got, bool):
        checks.integer("seeds", got, low=1, high=10_000, hint="how many, or a list of seeds")
        return tuple(range(got))
    found = tuple(checks.iterable("seeds", got, "how many, or a list of seeds"))
    for seed in found:
        checks.integer("seeds", seed, low=0, high=2**63 - 1)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds: got {found}, need one or more, each once")
    return found

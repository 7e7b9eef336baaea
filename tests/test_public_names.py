"""What `dir`, a star and a dot find in the two packages."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import qtrain
import quantizers

MODULES = {
    qtrain: [
        "data",
        "deviations",
        "differences",
        "energy",
        "executors",
        "fused",
        "models",
        "recipes",
        "rules",
    ],
    quantizers: ["accumulators", "kernels"],
}


@pytest.mark.parametrize("package", MODULES, ids=lambda package: package.__name__)
def test_dir_shows_the_public_names_and_no_module_that_is_not_documented(
    package: ModuleType,
) -> None:
    shown = [name for name in dir(package) if name != "__version__"]
    assert shown == sorted(package.__all__) and not [name for name in shown if name[0] == "_"]
    modules = [name for name in shown if isinstance(getattr(package, name), ModuleType)]
    assert modules == MODULES[package]


@pytest.mark.parametrize("package", MODULES, ids=lambda package: package.__name__)
def test_every_name_that_is_exported_is_listed(package: ModuleType) -> None:
    assert package.__file__ is not None
    exported = re.findall(r" as (\w+)$", Path(package.__file__).read_text(), re.MULTILINE)
    assert sorted(exported) == sorted(package.__all__)


def test_modules_that_moved_are_attributes() -> None:
    assert qtrain.deviations.l1() == qtrain.deviations.get("l1")
    assert callable(qtrain.fused.norm_relu) and callable(qtrain.energy.by_width)
    assert qtrain.recipes.int8() == qtrain.recipes.get("int8")
    assert "digits" in qtrain.data.names() and "resnet18" in qtrain.models.names()

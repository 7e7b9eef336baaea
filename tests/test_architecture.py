"""Imports run one way, files stay small, nothing is exported by a star."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("quantizers", "qtrain", "experiments")
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
OURS = [p for p in FILES if p.relative_to(ROOT).parts[0] != "experiments"]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Every module a file imports, absolute: lazily and for its types alone too."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return found


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted((ROOT / "quantizers").rglob("*.py")), ids=short)
def test_quantizers_imports_torch_alone(path: Path) -> None:
    own: dict[str, set[str]] = {
        "compiled.py": {"numpy", "numba", "llvmlite"},  # imported when a kernel is first used
        "compiled_elements.py": {"numpy", "numba"},
        "compiled_extremes.py": {"numpy"},
        "compiled_rounding.py": {"numpy"},
        "compiled_scales.py": {"numpy"},
        "compiled_whole.py": {"numpy", "numba", "llvmlite"},
        "device.py": {"triton"},  # in its interpreter
    }
    kernel = {"triton"} if path.name.startswith("triton_") else set()
    assert roots(path) <= {"torch", "quantizers"} | kernel | own.get(path.name, set())


@pytest.mark.parametrize("path", sorted((ROOT / "quantizers").rglob("*.py")), ids=short)
def test_quantizers_holds_no_module_and_no_autograd(path: Path) -> None:
    assert not {m for m in imports(path) if m.startswith(("torch.nn", "torch.autograd"))}
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert not any(isinstance(node, ast.Global) for node in nodes)
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not names & {"Module", "Function", "manual_seed", "environ"}


@pytest.mark.parametrize("path", sorted((ROOT / "qtrain").rglob("*.py")), ids=short)
def test_qtrain_imports_quantizers_and_what_it_declares(path: Path) -> None:
    declared = {"torch", "numpy", "numba", "llvmlite", "tabulate", "tqdm", "matplotlib", "jinja2"}
    declared.add("PIL")
    # imported where they are used
    extras = {"results.py": {"pandas"}, "ray.py": {"ray"}, "slurm.py": {"submitit"}}
    declared |= extras.get(path.name, set())
    if path.name.startswith("triton_"):  # imported when a kernel is first used, on a GPU
        declared.add("triton")
    assert roots(path) <= declared | {"quantizers", "qtrain"}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.py")), ids=short)
def test_experiments_use_public_names_only(path: Path) -> None:
    """Every import, wherever it stands."""
    hidden = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            hidden += [alias.name for alias in node.names if not is_public(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            hidden += [a.name for a in node.names if not is_public(module, a.name)]
    assert not hidden


#: Modules of ours that are imported from by a dotted path.
DOTTED = ("quantizers", "qtrain", "qtrain.data", "qtrain.models", "qtrain.recipes")


def is_public(module: str, name: str | None = None) -> bool:
    """Whether anybody may write `from module import name`, or `import module`."""
    if module.partition(".")[0] not in ("quantizers", "qtrain"):
        return True
    return module in DOTTED and (name is None or name in public_names(module))


def public_names(module: str) -> set[str]:
    """What a module lists, or else re-exports as itself, or, where it does neither, defines."""
    listed = getattr(importlib.import_module(module), "__all__", None)
    if listed is not None:
        return set(listed)
    body = ast.parse(MODULES[module].read_text()).body
    imported = [alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    exported = {alias.name for alias in imported if alias.asname == alias.name}
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {name for name in exported or defined if not name.startswith("_")}


def test_a_hidden_name_is_seen() -> None:
    assert is_public("qtrain.data", "DataSet") and is_public("qtrain.recipes", "int8")
    assert is_public("numpy.linalg", "norm") and is_public("quantizers", "Quantizer")
    assert is_public("qtrain") and not is_public("qtrain.files.whole")
    assert not is_public("qtrain.data", "draws") and not is_public("qtrain", "checks")
    assert not is_public("qtrain.recipes", "replace")
    assert not is_public("quantizers.formats", "Format")


#: The rooms of qtrain, from the ground up: an arrow may only point to an earlier one.
ROOMS = (
    "version",
    "checks",
    "files",
    "names",
    "autograd",
    "layer_state",
    "copies",
    "reports",
    "data",
    "norms",
    "recipe",
    "recipes",
    "recipe_words",
    "recipe_file",
    "weights",
    "schedule",
    "products",
    "layers",
    "conversion",
    "models",
    "inspection",
    "hardware",
    "diagnosis",
    "training",
    "cli_arguments",
    "cli_tables",
    "cli",
)


def room(module: str) -> int:
    """The place of a module of qtrain in the order of rooms."""
    return ROOMS.index(module.split(".")[1])


@pytest.mark.parametrize("path", sorted((ROOT / "qtrain").rglob("*.py")), ids=short)
def test_rooms_import_downwards(path: Path) -> None:
    own = name_of(path)
    if own == "qtrain":  # the door, which leads to every room
        return
    found = {module for module in imports(path) if module.partition(".")[0] == "qtrain"}
    assert "qtrain" not in found, "a room does not import the whole house"
    assert not {module for module in found if room(module) > room(own)}


def circles() -> set[frozenset[str]]:
    """Every set of modules that import one another round and round (Tarjan 1972)."""
    graph = {name: imports(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    found: set[frozenset[str]] = set()
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_: list[str] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        open_.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
            if other in open_:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            circle = open_[open_.index(module) :]
            del open_[open_.index(module) :]
            if len(circle) > 1:
                found.add(frozenset(circle))

    for module in graph:
        if module not in number:
            visit(module)
    return found


def test_imports_make_no_circle() -> None:
    assert not circles()


#: The most lines of a file.
LINES = 250


@pytest.mark.parametrize("path", OURS, ids=short)
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("path", OURS, ids=short)
def test_files_import_by_name(path: Path) -> None:
    stars = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars


def test_qtrain_does_not_import_what_only_reports_need() -> None:
    code = "import sys, qtrain.cli; sys.exit(bool({'matplotlib', 'jinja2'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("package", ["quantizers", "qtrain"])
def test_public_names_are_listed_and_documented(package: str) -> None:
    module = __import__(package)
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "VERSION":  # exported as __version__
                    continue
                assert alias.asname == alias.name, f"{alias.name}: re-export it as itself"
                value = getattr(module, alias.name)
                if callable(value):
                    assert value.__doc__, alias.name

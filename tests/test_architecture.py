"""Imports run one way, files stay small, nothing is exported by a star."""

from __future__ import annotations

import ast
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


def imports(path: Path, *, top: bool = False) -> set[str]:
    """Every module a file imports, absolute; top: only when the file itself is imported."""
    tree = ast.parse(path.read_text())
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found: set[str] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
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
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not (top and (lazy or typing_only)):
            nodes.extend(ast.iter_child_nodes(node))
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
        "compiled_rounding.py": {"numpy"},
        "compiled_whole.py": {"numpy", "numba", "llvmlite"},
    }
    assert roots(path) <= {"torch", "quantizers"} | own.get(path.name, set())


@pytest.mark.parametrize("path", sorted((ROOT / "quantizers").rglob("*.py")), ids=short)
def test_quantizers_holds_no_module_and_no_autograd(path: Path) -> None:
    assert not {m for m in imports(path) if m.startswith(("torch.nn", "torch.autograd"))}
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert not any(isinstance(node, ast.Global) for node in nodes)
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not names & {"Module", "Function", "manual_seed", "environ"}


@pytest.mark.parametrize("path", sorted((ROOT / "qtrain").rglob("*.py")), ids=short)
def test_qtrain_imports_quantizers_and_what_it_declares(path: Path) -> None:
    declared = {"torch", "numpy", "numba", "tabulate", "tqdm", "matplotlib", "PIL"}
    assert roots(path) <= declared | {"quantizers", "qtrain"}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.py")), ids=short)
def test_experiments_use_public_names_only(path: Path) -> None:
    names = {m for m in imports(path) if m.partition(".")[0] in ("quantizers", "qtrain")}
    assert not [m for m in names if any(part.startswith("_") for part in m.split("."))]


def test_imports_make_no_cycle() -> None:
    graph = {
        name: {m for m in imports(path, top=True) if m in MODULES and m != name}
        for name, path in MODULES.items()
        if path.name != "__init__.py"
    }
    for module in graph:  # a package's __init__ imports its modules: follow it there instead
        graph[module] &= graph.keys()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


#: design's order: an arrow may only point to the left of itself
LAYERS = ("recipe", "engines", "products", "layers", "convert", "inspection", "training", "cli")


def test_layers_of_qtrain_import_downwards() -> None:
    order = {f"qtrain.{name}": rank for rank, name in enumerate(LAYERS)}
    order["qtrain.products.engines.choice"] = order["qtrain.engines"]
    for name, rank in order.items():
        if name in MODULES:
            above = {m for m in imports(MODULES[name]) if order.get(m, -1) > rank}
            assert not above, f"{name} imports {above}"


@pytest.mark.parametrize("path", OURS, ids=short)
def test_files_are_small_and_import_by_name(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    stars = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars


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

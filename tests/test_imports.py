"""The plan of the house, held by reading the source: which way imports point, who reads the environment, what is said.

    sae_core  <-  tasks  <-  flows  <-  deployments
"""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("sae_core", "tasks", "flows", "deployments")  # each may import itself and what stands left of it

# sae_core computes: what it may import besides the standard library.
CORE_LIBRARIES = {"torch", "numpy", "pydantic", "safetensors", "llvmlite", "numba", "triton"}

# What costs so much to import that `saeflow plan` could not answer in two seconds.
HEAVY = {"anthropic", "datasets", "pandas", "prefect", "pyarrow", "ray", "s3fs", "torch", "transformers", "wandb"}
LIGHT = ("flows.cli", "flows.config", "flows.dag", "flows.planner")  # and every module that declares a Stage

# tasks/settings.py alone reads the environment; these set variables for the processes that they start.
ENVIRONMENT = {
    "tasks.settings": "the only reader",
    "tasks.cluster": "Ray takes its authentication and ports from the environment only",
    "tasks.guard": "marks the processes of a run, so that they can be found and ended with it",
    "flows.ui": "the server and the worker that it starts take their settings from the environment",
    "flows.server": "Prefect takes its server and its manners from the environment only",
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the project by its dotted name, parsed."""
    found = {}
    for path in sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(), str(path))
    return found


def imported(node: ast.AST, module: str) -> Iterator[str]:
    """Dotted names that an import statement brings in, `from package import module` also as package.module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} line {node.lineno}: imports are absolute, so that one sees the layer"
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(name: str) -> set[str]:
    """Everything a module imports anywhere, also inside functions and for types only."""
    return {target for node in ast.walk(modules()[name]) for target in imported(node, name)}


def is_typing_guard(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` does not run."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when the module is imported: not those inside functions or under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if is_typing_guard(child):
            for other in child.orelse:
                yield from (other, *run_at_import(other))
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from run_at_import(child)


def module_imports(name: str) -> set[str]:
    """What importing a module imports at once, its own packages' `__init__` included."""
    targets = {target for node in run_at_import(modules()[name]) for target in imported(node, name)}
    parents = {".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)}
    return targets | parents


def import_chains(name: str) -> dict[str, list[str]]:
    """Everything that importing `name` loads: {module or library: how it was reached}."""
    chains = {name: [name]}
    waiting = [name]
    while waiting:
        here = waiting.pop()
        for target in sorted(module_imports(here)):
            if target not in chains:
                chains[target] = [*chains[here], target]
                if target in modules():
                    waiting.append(target)
    return chains


def is_test_or_library(name: str) -> bool:
    """Says whether an import leaves the project."""
    return name.split(".")[0] not in LAYERS


@pytest.mark.parametrize("name", modules())
def test_imports_point_one_way(name):
    allowed = LAYERS[: LAYERS.index(name.split(".")[0]) + 1]
    wrong = {target for target in all_imports(name) if not is_test_or_library(target)}
    wrong = {target for target in wrong if target.split(".")[0] not in allowed}
    assert not wrong, f"{name} imports {sorted(wrong)}: arrows point {' <- '.join(LAYERS)}"


def test_nothing_imports_the_tests():
    assert not [name for name in modules() if any(t.split(".")[0] == "tests" for t in all_imports(name))]


def test_only_flows_knows_prefect():
    knows = {name for name in modules() if any(target.split(".")[0] == "prefect" for target in all_imports(name))}
    assert {name.split(".")[0] for name in knows} == {"flows"}


def test_sae_core_needs_nothing_but_its_libraries():
    for name in (name for name in modules() if name.split(".")[0] == "sae_core"):
        roots = {target.split(".")[0] for target in all_imports(name) if target}
        foreign = roots - CORE_LIBRARIES - {"sae_core"} - set(sys.stdlib_module_names)
        assert not foreign, f"{name} imports {sorted(foreign)}; sae_core may use {sorted(CORE_LIBRARIES)}"


def stage_modules() -> list[str]:
    """Modules that declare a stage: those that the plan has to import."""
    found = []
    for name, tree in modules().items():
        calls = (node for node in run_at_import(tree) if isinstance(node, ast.Call))
        if name.startswith("tasks.") and any(getattr(call.func, "id", None) == "Stage" for call in calls):
            found.append(name)
    return found


def test_every_stage_of_the_pipeline_is_among_them():
    from flows.dag import STAGES

    assert {stage.run.__module__ for stage in STAGES.values()} <= set(stage_modules())


@pytest.mark.parametrize("name", [*LIGHT, *stage_modules()])
def test_what_the_plan_imports_is_light(name):
    heavy = {target: chain for target, chain in import_chains(name).items() if target.split(".")[0] in HEAVY}
    assert not heavy, "import inside the function instead: " + "; ".join(" -> ".join(c) for c in heavy.values())


def test_the_plan_loads_nothing_heavy_when_it_is_really_imported():
    names = [*LIGHT, *stage_modules()]
    code = f"import sys, {', '.join(names)}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


@pytest.mark.parametrize("name", modules())
def test_the_environment_is_read_in_one_module(name):
    asks = {"os.environ", "os.getenv", "os.putenv"}
    touched = [
        node.lineno
        for node in ast.walk(modules()[name])
        if ast.unparse(node) in asks or asks & set(imported(node, name))
    ]
    if touched and name not in ENVIRONMENT:
        pytest.fail(f"{name} uses the environment in lines {touched}; let tasks/settings.py read it")


def test_the_list_of_those_who_touch_the_environment_is_not_longer_than_needed():
    for name in ENVIRONMENT:
        assert "environ" in ast.unparse(modules()[name]), f"{name} no longer needs its entry in ENVIRONMENT"


def test_sae_core_loads_the_compilers_of_its_kernels_only_where_they_are_used():
    code = "import sys, sae_core; print(*sorted({'numba', 'triton'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_sae_core_says_nothing():
    for name in (name for name in modules() if name.split(".")[0] == "sae_core"):
        tree = modules()[name]
        assert not {"logging", "rich", "tqdm"} & all_imports(name), f"{name} logs"
        for node in ast.walk(tree):
            said = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
            stream = isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")
            assert not (said or stream), f"{name} line {node.lineno} prints"


def documented_protocol_methods() -> set[str]:
    """Methods whose meaning a Protocol of the project states; implementations need not repeat it."""
    found = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "Protocol" in [getattr(base, "id", "") for base in node.bases]:
                methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
                found |= {method.name for method in methods if ast.get_docstring(method)}
    return found


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] in ("sae_core", "tasks")])
def test_everything_public_has_a_docstring(name):
    tree = modules()[name]
    missing = [] if ast.get_docstring(tree) else ["the module"]
    stated = documented_protocol_methods()
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        for part in node.body if isinstance(node, ast.ClassDef) else []:
            public = isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and not part.name.startswith("_")
            if public and not ast.get_docstring(part) and part.name not in stated:
                missing.append(f"{node.name}.{part.name}")
    assert not missing, f"{name}: no docstring on {missing}"

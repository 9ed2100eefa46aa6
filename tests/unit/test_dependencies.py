"""What pyproject.toml declares is what the code imports: nothing undeclared, nothing for nothing, each in its place."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "cmtvision"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WITH_TORCH = {"triton"}  # comes with torch's builds for CUDA; the code asks whether it is there
THROUGH_LIGHTNING = {"tensorboard": "TensorBoardLogger", "wandb": "WandbLogger", "mlflow": "MLFlowLogger"}
MEASURED_ELSEWHERE = {"fastai"}  # what we are compared with; benchmarks/first_run.py runs it in its own environment
RUN_BY = {  # tools that no test imports, and the line that uses them
    "import-linter": ("Makefile", "$(BIN)/lint-imports"),
    "mypy": ("Makefile", "$(BIN)/mypy"),
    "pre-commit": ("CONTRIBUTING.md", "`pre-commit install`"),
    "pytest-socket": ("pyproject.toml", "--disable-socket"),
    "pytest-timeout": ("pyproject.toml", "\ntimeout = "),
    "pytest-xdist": ("Makefile", "$(BIN)/pytest -n 3"),
    "ruff": ("Makefile", "$(BIN)/ruff check"),
    "types-pyyaml": ("src/cmtvision/recipe/load.py", "import yaml\n"),  # mypy --strict reads its types
    "uv": ("tests/resolve_extras.py", '"-m", "uv"'),
}


class Import(NamedTuple):
    """A module that a file imports; late where that happens in a function."""

    module: str
    file: Path
    late: bool


def declared(lines):
    """Names of the packages that a list of requirements needs, those of extras of our own among them."""
    names = set()
    for requirement in map(Requirement, lines):
        if requirement.name == "cmtvision":
            names = names.union(*(EXTRAS[extra] for extra in requirement.extras))
        else:
            names.add(canonicalize_name(requirement.name))
    return names


EXTRAS = {}
for name, lines in PROJECT["optional-dependencies"].items():
    EXTRAS[name] = declared(lines)
BASE = declared(PROJECT["dependencies"])
DISTRIBUTIONS = packages_distributions()
OWN_MODULES = {
    "cmtvision",
    "cmtvision_preprocess",  # what a bundle calls our preprocessing
    *(file.stem for folder in ("tests", "benchmarks") for file in ROOT.glob(f"{folder}/**/*.py")),
}
OURS = {name: names for name, names in EXTRAS.items() if name not in ("all", "dev")}


def third_party(module):
    """The package that brings a module; None for ours, Python's, and files of the tests."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in WITH_TORCH or top in OWN_MODULES:
        return None
    return canonicalize_name(DISTRIBUTIONS.get(top, [top])[0])


@cache
def imports_of(file):
    """Every import in a file, but for those that only the type checker sees."""
    found = []

    def visit(node, late):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, file, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and not child.level:
                found.append(Import(str(child.module), file, late))
            elif isinstance(child, ast.Call) and ast.unparse(child.func) == "pytest.importorskip":
                found.extend(Import(one.value, file, late) for one in child.args if isinstance(one, ast.Constant))
            visit(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return found


def imported_below(*folders):
    """Package -> its imports in the files of some folders."""
    packages = {}
    for folder in folders:
        for one in (one for file in sorted(folder.rglob("*.py")) for one in imports_of(file)):
            if package := third_party(one.module):
                packages.setdefault(package, []).append(one)
    return packages


def shown(imports):
    return sorted({f"{one.module} in {one.file.relative_to(ROOT)}" for one in imports})


def test_what_the_source_imports_is_declared():
    packages = imported_below(SOURCE)
    undeclared = [packages[name] for name in packages if not any(name in names for names in (BASE, *OURS.values()))]
    assert not undeclared, [shown(imports) for imports in undeclared]


def test_what_an_extra_brings_is_imported_only_inside_functions():
    # leaves the house with an export, and is a program of its own there
    bundled = SOURCE / "deploy" / "bundling" / "bundle_files"
    early = [
        one
        for name, imports in imported_below(SOURCE).items()
        for one in imports
        if name not in BASE and not one.late and bundled not in one.file.parents
    ]
    assert not early, shown(early)


@pytest.mark.parametrize("where", ["cmtvision", *OURS])
def test_nothing_is_declared_that_is_not_used(where):
    packages = imported_below(SOURCE)
    loggers = (SOURCE / "engine" / "callbacks" / "tracking.py").read_text(encoding="utf-8")
    through = {name for name, logger in THROUGH_LIGHTNING.items() if f"{logger}(" in loggers}
    unused = (BASE if where == "cmtvision" else EXTRAS[where]) - set(packages) - through
    assert not unused


def test_tests_and_benchmarks_import_what_dev_brings():
    available = BASE | EXTRAS["dev"] | MEASURED_ELSEWHERE
    undeclared = {
        name: shown(imports)
        for name, imports in imported_below(ROOT / "tests", ROOT / "benchmarks").items()
        if name not in available
    }
    assert not undeclared


def test_dev_brings_nothing_for_nothing():
    own = declared(line for line in PROJECT["optional-dependencies"]["dev"] if not line.startswith("cmtvision["))
    used = set(imported_below(ROOT / "tests", ROOT / "benchmarks"))
    for name, (file, text) in RUN_BY.items():
        assert text in (ROOT / file).read_text(encoding="utf-8"), name
    assert own - used == set(RUN_BY)


def test_all_is_every_extra_that_users_have():
    assert EXTRAS["all"] == set().union(*OURS.values())
    assert EXTRAS["dev"] >= set().union(*(names for name, names in OURS.items() if name != "track"))


def test_every_extra_that_a_message_or_a_page_names_is_there():
    files = [*SOURCE.rglob("*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    named = {
        (extra.strip(), file.name)
        for file in files
        for extras in re.findall(r"(?:cmtvision|'\.)\[([\w, ]+)\]", file.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert {extra for extra, _ in named} - set(EXTRAS) == set()
    assert len(named) >= 10


def test_the_extra_that_a_message_names_brings_what_was_missing():
    """For each `try: import x` whose handler names an extra: x comes with it, or with what everyone has."""
    checked = 0
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Try):
                continue
            extras = [
                one for handler in node.handlers for one in re.findall(r"cmtvision\[(\w+)\]", ast.unparse(handler))
            ]
            modules = [
                one for line in node.body for one in ast.walk(line) if isinstance(one, (ast.Import, ast.ImportFrom))
            ]
            for module in modules:
                name = module.names[0].name if isinstance(module, ast.Import) else str(module.module)
                for extra in extras:
                    assert third_party(name) in EXTRAS[extra] | BASE, f"{file}: {name} does not come with {extra}"
                    checked += 1
    assert checked >= 7


def test_extras_that_are_named_by_a_variable_bring_what_was_missing():
    from cmtvision.bench.runtimes import EXPORTS
    from cmtvision.engine.callbacks.tracking import _BUILDERS

    for runtime, modules in EXPORTS.items():
        assert {third_party(module) for module in modules} <= EXTRAS.get(runtime, set())
    assert set(_BUILDERS) == {"tensorboard"} | EXTRAS["track"]
    for extra in ("onnx", "openvino"):  # what deploy.onnx_file.require_onnx names
        assert {third_party(module) for module in ("onnx", "onnxscript", "ml_dtypes")} <= EXTRAS[extra]


def test_openvino_and_nncf_are_imported_where_their_telemetry_is_turned_off():
    places = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            here = file.relative_to(SOURCE).as_posix()
            places |= {(here, name) for name in names if name.partition(".")[0] in ("openvino", "nncf")}
    assert places == {
        ("artefact/runtimes/openvino.py", "openvino"), ("deploy/quantizing/quantize_openvino.py", "nncf"),
        # of an OpenVINO that is in memory
        ("deploy/quantizing/quantize_openvino.py", "openvino._offline_transformations"),
    }  # fmt: skip

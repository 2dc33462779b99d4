# SPDX-License-Identifier: Apache-2.0
"""What the metadata of each package says: one version, and every distribution that its code imports."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGES = sorted((ROOT / "packages").iterdir())


# Modules that are not called as the distribution they come with.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}


def metadata(package: Path) -> dict:
    return tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))


FACADE = ROOT / "packages/ipu-core/src/ipu_core/migration/graphcore"


def names(requirements) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported(node: ast.AST, in_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the distributions that a module imports, by the name of their module, and whether a function does."""
    for child in ast.iter_child_nodes(node):
        modules = []
        if isinstance(child, ast.Import):
            modules = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and not child.level:
            modules = [child.module]
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names:
                yield canonicalize_name(DISTRIBUTIONS.get(top, top)), in_function
        yield from imported(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_what_a_package_imports_is_declared(package):
    """As a requirement, or as an extra where a function, or a module that a script's own import loads, imports it."""
    project = metadata(package)["project"]
    required = names(project["dependencies"]) | {package.name}
    extras = names(text for texts in project.get("optional-dependencies", {}).values() for text in texts)
    for file in sorted((package / "src").rglob("*.py")):
        for name, in_function in imported(ast.parse(file.read_text(encoding="utf-8"))):
            allowed = required | extras if in_function or FACADE in file.parents else required
            assert name in allowed, f"{file.relative_to(package)} imports {name}, which the metadata does not require"


def test_the_version_of_all_packages_comes_from_one_file():
    version = Version((ROOT / "VERSION").read_text(encoding="utf-8").strip())
    for package in PACKAGES:
        found = metadata(package)
        assert found["project"]["dynamic"] == ["version"], package
        assert (package / found["tool"]["hatch"]["version"]["path"]).resolve() == ROOT / "VERSION"
        for requirement in map(Requirement, found["project"]["dependencies"]):
            if requirement.name == "ipu-core":
                assert version in requirement.specifier, f"{package.name} is not for ipu-core {version}"


def test_packages_have_the_same_requirements_of_what_they_share():
    ranges: dict[str, set[str]] = {}
    for package in PACKAGES:
        for requirement in map(Requirement, metadata(package)["project"]["dependencies"]):
            ranges.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert not {name: found for name, found in ranges.items() if len(found) > 1}

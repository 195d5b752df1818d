"""The files around the code, held against each other: what is imported and declared, the license, the workflow of CI."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
METADATA = PROJECT["project"]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
INSTALLED = ("flows", "tasks", "stores", "policies", "examples", "public")

NEVER_IMPORTED = {
    "aiosqlite",  # SQLAlchemy loads its driver by name
    "fsspec",  # loaded by name, when an archive is in an object store
    "tzdata",  # data, which zoneinfo finds
}


def declared(requirements: list[Any]) -> set[str]:
    """The distributions of a list, by their normalized names; groups that it includes are left out."""
    names = [Requirement(each).name for each in requirements if isinstance(each, str)]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def modules(*folders: str) -> Iterator[str]:
    """Each module that the files of these folders import, in functions too, by its first name."""
    for file in chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0]


def imported(*folders: str) -> set[str]:
    """The distributions of others whose modules these folders import."""
    helpers = {file.stem for file in (ROOT / "tests").rglob("*.py")} | {file.name for file in ROOT.iterdir() if file.is_dir()}
    foreign = {*modules(*folders)} - sys.stdlib_module_names - helpers - {"prefect_artifact_retention"}
    distributions = packages_distributions()
    return {re.sub(r"[-_.]+", "-", distributions[module][0]).lower() for module in foreign}


def test_what_the_package_imports_is_declared_and_nothing_else() -> None:
    """Prefect brings most of it, and may stop to: so each dependency is named, and none that nothing needs."""
    named = declared(METADATA["dependencies"]) | declared(METADATA["optional-dependencies"]["archive"])
    assert imported(*INSTALLED) == named - NEVER_IMPORTED


def test_what_tests_and_benchmarks_import_is_declared() -> None:
    """By the package, or by the group of its developers."""
    known = declared(METADATA["dependencies"]) | declared(PROJECT["dependency-groups"]["dev"])
    assert imported("tests", "benchmarks") - known == set()


def test_nobody_who_runs_no_server_has_their_server_libraries_bounded() -> None:
    """This package is installed beside people's own flows: what a Prefect server needs is the extra `server`."""
    bounds = {requirement.name: str(requirement.specifier) for requirement in map(Requirement, METADATA["dependencies"])}
    assert "fastapi" not in bounds
    assert "<3" in bounds["sqlalchemy"]
    assert declared(METADATA["optional-dependencies"]["server"]) == {"fastapi", "sqlalchemy"}


def test_the_oldest_libraries_that_are_declared_have_what_is_used_of_them() -> None:
    """`LEVEL_ALIGN` is in rich from 14.3.0 on; asyncpg knows `sslnegotiation` from 0.30 on, and `service` from 0.31 on."""
    bounds = {requirement.name: requirement.specifier for requirement in map(Requirement, METADATA["dependencies"])}
    assert "14.2.0" not in bounds["rich"]
    assert "14.3.0" in bounds["rich"]
    assert "0.30.0" not in bounds["asyncpg"]
    assert "0.31.0" in bounds["asyncpg"]


def test_the_pins_are_complete_and_name_no_address() -> None:
    """Each with hashes, so that pip takes nothing else; where it comes from is for each machine to say."""
    for file in ROOT.glob("requirements*.txt"):
        text = file.read_text(encoding="utf-8")
        pins = re.findall(r"^([a-z0-9.-]+)==[^ ]+.* \\\n    --hash=sha256:", text, flags=re.MULTILINE)
        assert pins, file
        assert len(pins) == len(re.findall(r"^[a-z]", text, flags=re.MULTILINE)), file
        assert "://" not in text, file


def test_the_license_is_apache_2_0() -> None:
    """As the metadata says."""
    assert (METADATA["license"], METADATA["license-files"]) == ("Apache-2.0", ["LICENSE"])
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text


def test_the_changelog_has_the_version() -> None:
    """Its newest entry is what would be released next."""
    (newest, *_) = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest == METADATA["version"]


def test_ci_runs_targets_that_exist_on_every_python_that_is_declared() -> None:
    """A new Python is declared once it is tested."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {*re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)}
    called = {target for step in STEPS for target in re.findall(r"^make ([a-z-]+)$", step.get("run", ""))}
    called |= {*WORKFLOW["jobs"]["nightly"]["strategy"]["matrix"]["target"]}
    assert called >= {"lint", "test", "docs", "test-all", "test-compat"}
    assert called - targets == set()
    prefix = "Programming Language :: Python :: "
    pythons = [name.removeprefix(prefix) for name in METADATA["classifiers"] if re.match(rf"{prefix}\d\.", name)]
    assert WORKFLOW["jobs"]["unit"]["strategy"]["matrix"]["python"] == pythons


def test_ci_may_only_read_and_its_actions_are_of_a_major_version() -> None:
    """A pull request of a stranger runs it, too; and no job waits for ever."""
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for job in WORKFLOW["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"]
    uses = [step for step in STEPS if "uses" in step]
    assert [step["uses"] for step in uses if not re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])] == []
    checkouts = [step for step in uses if step["uses"].startswith("actions/checkout@")]
    assert [step["with"]["persist-credentials"] for step in checkouts] == [False] * len(WORKFLOW["jobs"])

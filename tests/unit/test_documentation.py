"""What the documentation shows works, and the layers that it promises hold."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from cyclopts import CycloptsError
from prefect_artifact_retention.flows.cli import app
from prefect_artifact_retention.flows.settings import ENV_PREFIX, RetentionSettings, load_settings, resolve_policies
from prefect_artifact_retention.policies import RetentionPolicy, load_policies

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "retention.toml").read_text(encoding="utf-8")
LAYERS = ("policies", "stores", "tasks", "flows")
PACKAGE = "prefect_artifact_retention"


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The arguments of every `artifact-retention` call in the README's shell blocks."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    found = [re.search(r"(?<![\w-])artifact-retention( .*|$)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def section(title: str) -> str:
    """The README from one heading to the next."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def uncommented(text: str) -> str:
    """A configuration file with its commented examples in force."""
    return re.sub(r"^# (?=\[\[\w+\]\]$|\w+ = )", "", text, flags=re.MULTILINE)


# --- retention.toml


def test_the_shipped_configuration_sets_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever copies it deletes nothing by it."""
    monkeypatch.chdir(tmp_path)
    assert load_settings(ROOT / "retention.toml").model_dump() == RetentionSettings().model_dump()


def test_the_examples_of_the_shipped_configuration_load_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Uncommented, they are policies and settings that a deletion takes."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "examples.toml"
    file.write_text(uncommented(CONFIGURATION), encoding="utf-8")
    settings = load_settings(file)
    (_own, *policies), source = resolve_policies((), settings, "delete")
    assert source == str(file)
    assert len(policies) == CONFIGURATION.count("[[policies]]") > 0


def test_the_shipped_configuration_shows_every_setting_with_its_default() -> None:
    """Uncommenting one changes nothing until its value is changed."""
    table = tomllib.loads(uncommented(CONFIGURATION))
    del table["policies"]
    assert table == RetentionSettings.model_construct().model_dump(exclude={"policies", "database_url"})


# --- README.md


@pytest.mark.parametrize("toml", blocks("toml"))
def test_the_policies_of_the_readme_load(toml: str) -> None:
    """Each block on its own."""
    assert load_policies(tomllib.loads(toml)["policies"], source="README.md")


def test_the_readme_shows_policies_and_commands() -> None:
    """The tests around this one have something to check."""
    assert len(blocks("toml")) >= 2
    assert len(commands()) >= 6


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_commands_of_the_readme_exist(arguments: list[str]) -> None:
    """With every flag that they show; nothing is run."""
    command, _bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert command.__module__ == f"{PACKAGE}.flows.cli"


def test_a_flag_that_does_not_exist_would_be_noticed() -> None:
    """The test above can fail."""
    with pytest.raises(CycloptsError):
        app.parse_args(["preview", "--max-deletions", "3"], exit_on_error=False, print_error=False)


def test_every_command_is_in_the_readme_and_no_other() -> None:
    """The table of commands is complete."""
    listed = re.findall(r"^\| `artifact-retention ([a-z ]+?)(?: [A-Z]+)?` \|", section("Commands"), flags=re.MULTILINE)
    names = {name for name in app if not name.startswith("-")} - {"policies"}
    assert set(listed) == names | {"policies check"}


def test_every_flag_that_the_readme_names_exists() -> None:
    """Outside of code blocks as well."""
    named = set(re.findall(r"`(--[a-z-]+)", section("Commands") + section("Settings")))
    ours = ("preview", "delete", "explain", "alarm", "demo")
    collections = [app[name].assemble_argument_collection() for name in ours]
    known = {flag for arguments in collections for argument in arguments for flag in argument.names}
    assert named
    assert named <= known


def test_the_readme_lists_every_setting_with_its_default() -> None:
    """By its name in the file and in the environment."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+|none) \|", section("Settings"), flags=re.MULTILINE)
    fields = {
        name: field for name, field in RetentionSettings.model_fields.items() if name not in ("policies", "database_url")
    }
    assert rows == [(name, ENV_PREFIX + name.upper(), str(field.default) or "none") for name, field in fields.items()]
    assert f"| never: it is a secret | `{ENV_PREFIX}DATABASE_URL` | none |" in section("Settings")


def test_every_variable_that_the_readme_names_exists() -> None:
    """A misspelt one would be refused."""
    known = {ENV_PREFIX + name.upper() for name in (*RetentionSettings.model_fields, "config")}
    assert set(re.findall(rf"{ENV_PREFIX}\w+", README)) == known


def test_the_readme_lists_every_field_of_a_policy() -> None:
    """And none that does not exist."""
    rows = re.findall(r"^\| (`[^|]+`) \|", section("A policy"), flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(RetentionPolicy.model_fields)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_of_the_readme_imports_what_exists(block: str) -> None:
    """Each block parses, and every name that it imports from this package is there."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_make_target_of_the_readme_exists() -> None:
    """In the Makefile beside it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(?:`)?make ([a-z]+)|`make ([a-z]+)`", README, flags=re.MULTILINE))
    names = {first or second for first, second in targets}
    assert {"demo", "test"} <= names
    assert names <= set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))


# --- layers


def imports(layer: str) -> Iterator[tuple[str, str]]:
    """Each file of a layer with each module that it imports, in functions too."""
    for file in sorted((ROOT / layer).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((file.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: a relative import"
                module = node.module or ""
                yield from ((file.name, f"{module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_only(layer: str) -> None:
    """From flows to tasks to stores to policies."""
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    ours = [(file, module) for file, module in imports(layer) if module.split(".")[0] == PACKAGE]
    assert ours
    assert [(file, module) for file, module in ours if module.split(".")[1] not in allowed] == []


def test_policies_import_nothing_of_prefect() -> None:
    """Nor anything else that could reach a server."""
    foreign = {module.split(".")[0] for _, module in imports("policies")}
    assert foreign.isdisjoint({"prefect", "httpx", "asyncio", "os", "pathlib", "socket", "sqlite3", "subprocess", "time"})


def test_policies_read_no_clock() -> None:
    """The time is an argument."""
    clocks = {"now", "today", "utcnow", "time", "monotonic"}
    for file in sorted((ROOT / "policies").glob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert [call.attr for call in calls if isinstance(call, ast.Attribute) and call.attr in clocks] == [], file.name


def test_stores_define_no_task_and_no_flow() -> None:
    """How versions are reached is no step of a run."""
    modules = {module for _, module in imports("stores")}
    assert modules.isdisjoint({"prefect.task", "prefect.flow", "prefect.tasks", "prefect.flows"})

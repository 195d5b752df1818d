"""What the documentation shows works, and the layers that it promises hold."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path

import pytest
from cyclopts import CycloptsError
from prefect_artifact_retention.flows.cli import DONE, FAILED, INTERRUPTED, REFUSED, UNFINISHED, USAGE, app
from prefect_artifact_retention.flows.deployment import DeploymentSettings
from prefect_artifact_retention.flows.settings import (
    DEPLOY_PREFIX,
    ENV_PREFIX,
    RetentionSettings,
    load_settings,
    resolve_policies,
)
from prefect_artifact_retention.flows.simulation import simulate_policies
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.doubts import find_doubts

from tools.cookbook import recipes, renew_verdicts
from tools.reference import renew_tables, tables
from tools.simulations import renew_simulations

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", *(f"docs/{page.name}" for page in sorted(DOCS.glob("*.md"))))
}
README, REFERENCE, COOKBOOK = PAGES["README.md"], PAGES["docs/reference.md"], PAGES["docs/cookbook.md"]
RECIPES = {part.partition("\n")[0]: part for part in recipes(COOKBOOK)[1:]}
CONFIGURATION = (ROOT / "retention.toml").read_text(encoding="utf-8")
LAYERS = ("policies", "stores", "tasks", "flows")
PACKAGE = "prefect_artifact_retention"
EVERYWHERE = pytest.mark.parametrize("page", PAGES)


def blocks(language: str, *pages: str) -> list[str]:
    """The code blocks of one language, of some pages or all."""
    texts = [PAGES[page] for page in pages or PAGES]
    return [found for text in texts for found in re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


def commands() -> list[tuple[str, ...]]:
    """The arguments of every `artifact-retention` call in the shell blocks of all pages, and in their sentences."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    found = [match[1] for line in lines if (match := re.match(r"artifact-retention( .*|$)", line))]
    inline = [call for text in PAGES.values() for call in re.findall(r"`artifact-retention( [^`]*)`", text)]
    return sorted({tuple(shlex.split(call, comments=True)) for call in (*found, *inline)})


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
    del table["policies"], table["targets"]
    assert table == RetentionSettings.model_construct().model_dump(exclude={"policies", "targets", "database_url"})


# --- examples


@pytest.mark.parametrize("toml", blocks("toml"))
def test_the_policies_of_every_page_load(toml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block on its own is a configuration by which a deletion would run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retention.toml").write_text(toml, encoding="utf-8")
    policies, source = resolve_policies((), load_settings(), "delete")
    assert source == "retention.toml"
    assert len(policies) == 1 + toml.count("[[policies]]") > 1
    assert find_doubts(policies) == []


def test_the_pages_show_policies_and_commands() -> None:
    """The tests around this one have something to check."""
    assert len(blocks("toml", "README.md")) == 1
    assert len(blocks("toml")) >= 12
    assert len(commands()) >= 10


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_commands_of_every_page_exist(arguments: tuple[str, ...]) -> None:
    """With every flag that they show; nothing is run."""
    command, _bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    assert command.__module__ == f"{PACKAGE}.flows.cli"


def test_a_flag_that_does_not_exist_would_be_noticed() -> None:
    """The test above can fail."""
    with pytest.raises(CycloptsError):
        app.parse_args(["preview", "--max-deletions", "3"], exit_on_error=False, print_error=False)


@EVERYWHERE
def test_every_variable_that_a_page_names_exists(page: str) -> None:
    """A misspelt one would be refused."""
    known = {ENV_PREFIX + name.upper() for name in (*RetentionSettings.model_fields, "config")}
    known |= {DEPLOY_PREFIX + name.upper() for name in DeploymentSettings.model_fields}
    assert {name for name in re.findall(rf"{ENV_PREFIX}\w+", PAGES[page]) if name not in known} <= {DEPLOY_PREFIX}


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_of_every_page_imports_what_exists(block: str) -> None:
    """Each block parses, and every name that it imports from this package is there."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@EVERYWHERE
def test_every_make_target_that_a_page_names_exists(page: str) -> None:
    """In the Makefile beside it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", PAGES[page], flags=re.MULTILINE))
    targets = {first or second for first, second in named}
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))


def test_the_readme_begins_with_two_commands() -> None:
    """Those that decide whether a newcomer stays."""
    assert [line.split("  ")[0] for line in blocks("sh", "README.md")[0].splitlines()] == ["make demo", "make test"]


# --- reference


def test_the_reference_says_what_the_models_say() -> None:
    """Policy fields, settings, parameters, commands, report; `make docs` renews it."""
    assert renew_tables(REFERENCE) == REFERENCE


def test_every_line_of_the_reference_has_a_meaning() -> None:
    """No model has a field without a description."""
    generated = re.findall(r"<!-- generated: .*?<!-- end -->", REFERENCE, flags=re.DOTALL)
    assert len(generated) == len(tables())
    assert [line for part in generated for line in part.splitlines() if line.startswith("|") and line.endswith("|  |")] == []


def test_the_reference_lists_the_exit_codes() -> None:
    """Each of them, and no other."""
    listed = re.findall(r"^\| (\d+) \|", REFERENCE.split("\n## Exit codes\n")[1].split("\n## ")[0], flags=re.MULTILINE)
    assert [int(code) for code in listed] == [DONE, FAILED, USAGE, REFUSED, UNFINISHED, INTERRUPTED]


# --- cookbook


def test_the_verdicts_of_the_cookbook_are_those_of_the_code() -> None:
    """Each recipe's policies, applied to the versions of its example; `make docs` renews them."""
    assert renew_verdicts(COOKBOOK) == COOKBOOK


def test_the_cookbook_has_ten_recipes() -> None:
    """As it says."""
    assert len(RECIPES) == 10


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_shows_what_it_keeps_and_what_it_deletes(recipe: str) -> None:
    """Every policy of it decides on something in its example."""
    rows = [line for line in RECIPES[recipe].splitlines() if line.startswith("|")]
    assert any("| keep |" in row for row in rows)
    assert any("| delete |" in row for row in rows)
    names = re.findall(r'^name = "(.*)"$', RECIPES[recipe], flags=re.MULTILINE)
    assert [name for name in names if "| policy |" in rows[0] and not any(f"| {name} |" in row for row in rows)] == []


# --- simulations


def test_the_numbers_of_the_simulations_are_those_of_the_code() -> None:
    """Each example's policies, played as its command says; `make docs` renews them."""
    page = PAGES["docs/simulate.md"]
    assert renew_simulations(page) == page
    assert re.search(r"^\| days, weeks, months \| 1 \| 0 \(0 B\) \| (9|10|11) \(", page, flags=re.MULTILINE)


def test_how_many_days_weeks_and_months_there_are_depends_on_the_day_as_the_page_says() -> None:
    """Nine, or ten on a Sunday; with the months 9, 10 or 11 in 30 days, whichever day of two weeks the command is given."""
    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def left(days: int, begin: datetime, **months: int) -> list[int]:
        rules = RetentionPolicy(name="r", match_keys=["r"], keep_daily=7, keep_weekly=4, timezone="Europe/Zurich", **months)
        simulated, _tally = simulate_policies([rules], "a test", "daily", "50kB", days, begin)
        return simulated.policies[0].versions

    by_day = {(noon + timedelta(days=day)).isoweekday(): number for day, number in [*enumerate(left(90, noon))][60:]}
    assert by_day == {1: 9, 2: 9, 3: 9, 4: 9, 5: 9, 6: 9, 7: 10}
    begins = [noon + timedelta(days=day) for day in range(14)]
    assert {left(30, begin, keep_monthly=12)[30] for begin in begins} == {9, 10, 11}
    assert "makes nine versions, or ten on a Sunday, and not eleven" in PAGES["docs/simulate.md"]
    assert "the same command says 9, 10 or 11 there" in PAGES["docs/simulate.md"]


# --- pages


@EVERYWHERE
def test_every_link_of_a_page_leads_to_a_file(page: str) -> None:
    """And to a heading of it, where it names one; pictures too. Only the README, which is not in the site, links out of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file(), target
        assert page == "README.md" or DOCS in file.parents, f"{target} is not in the site"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """The builder does not notice one that is missing."""
    site = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert sorted(re.findall(r'= "([\w-]+\.md)"', site)) == sorted(page.name for page in DOCS.glob("*.md"))


@EVERYWHERE
def test_every_test_that_a_page_names_exists(page: str) -> None:
    """By its whole name, or by its beginning and an ellipsis."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    names = {name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text(encoding="utf-8"))}
    quoted = re.findall(r"`(test_\w+)(…?)`", PAGES[page])
    assert [
        name for name, more in quoted if name not in names and not (more and any(known.startswith(name) for known in names))
    ] == []


@EVERYWHERE
def test_every_file_of_the_project_that_a_page_names_exists(page: str) -> None:
    """Whole paths, as `policies/model.py` or `tests/races`."""
    folders = (*LAYERS, "tests", "benchmarks", "docs", "deployments", "examples", "public", "tools")
    quoted = re.findall(rf"`((?:{'|'.join(folders)})/[\w./-]*)`", PAGES[page])
    assert [path for path in quoted if not (ROOT / path).exists()] == []


def test_the_evidence_names_tests() -> None:
    """The test above has something to check."""
    assert len(re.findall(r"`test_\w+", PAGES["docs/evidence.md"])) > 30


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

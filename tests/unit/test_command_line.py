"""The command line without a server: exit codes, messages, and stdout that a program can read."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
from command import heed_ctrl_c
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.local_server import isolated_environment
from servers import talking_to

POLICIES = """\
[[policies]]
name = "audit"
match_keys = ["audit-*"]
keep_all = true

[[policies]]
name = "default"
keep_last = 10
"""


class Outcome(NamedTuple):
    """What one call gave."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and an environment that is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with patch.dict(os.environ):
        yield tmp_path


@pytest.fixture
def config(folder: Path) -> Path:
    """A retention.toml with two policies, in the working directory."""
    file = folder / "retention.toml"
    file.write_text(POLICIES, encoding="utf-8")
    return file


class Call:
    """Calls the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Outcome:
        """Give it these arguments."""
        code = main(arguments)
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line."""
    return Call(capsys)


# --- help


def test_help_lists_the_commands(call: Call) -> None:
    """And succeeds."""
    outcome = call("--help")
    assert outcome.code == 0
    for command in ("preview", "delete", "explain", "policies", "demo"):
        assert f"│ {command} " in outcome.stdout


def test_without_a_command_there_is_help(call: Call) -> None:
    """And nothing runs."""
    outcome = call()
    assert outcome.code == 0
    assert outcome.stdout == call("--help").stdout


def test_the_version_is_printed(call: Call) -> None:
    """The one of the installed distribution."""
    outcome = call("--version")
    assert outcome.code == 0
    assert outcome.stdout.strip() == "0.1.0"


# --- bad usage


BAD_USAGE = [
    # arguments, what stderr says
    (["preview", "--kye", "x"], "--kye"),
    (["preview", "--max-deletions", "3"], "--max-deletions"),
    (["previw"], "previw"),
    (["explain"], "explain takes a KEY, or --unkeyed"),
    (["explain", "x", "--unkeyed"], "explain takes a KEY, or --unkeyed"),
    (["delete", "--key"], "--key"),
    (["delete", "--key", "x", "--keep-last", "ten"], "--keep-last"),
    (["preview", "--keep-last", "3"], "need --key"),
    (["delete", "--keep-within-days", "3"], "need --key"),
    (
        ["delete", "--key", "x", "--keep-last", "-1"],
        "command line: keep_last = -1: input should be greater than or equal to 0",
    ),
    (["preview", "--key", "x", "--keep-within-days", "nan"], "command line: keep_within_days = nan: "),
    (["preview", "--keep-last", "0"], "need --key"),
    (["delete", "--key", "x", "--keep-last", "0"], "command line: --keep-last 0 keeps nothing"),
    (["preview", "--key", "x", "--keep-within-days", "0"], "command line: --keep-within-days 0 keeps nothing"),
    (
        ["delete", "--key", "x", "--keep-last", "0", "--keep-within-days", "0"],
        "--keep-last 0 --keep-within-days 0 keeps nothing",
    ),
    (["delete", "--max-deletions", "0.4"], "--max-deletions: 0.4 is no whole number"),
    (["delete", "--max-deletions", "-0.4"], "--max-deletions: -0.4 is no whole number"),
    (["delete", "--key", "x", "--keep-last", "2.5"], "--keep-last: 2.5 is no whole number"),
    (["preview", "--key", "x", "--keep-last", "1.6"], "--keep-last: 1.6 is no whole number"),
    (["delete"], "no policy is configured, and nothing is deleted without one"),
    (["delete", "--key", "x"], "no policy is configured, and nothing is deleted without one"),
    (["delete", "--max-deletions", "-1"], "command line: max_deletions = -1: input should be greater than or equal to 0"),
    (["delete", "--refuse-above-percent", "101"], "command line: refuse_above_percent = 101.0: input should be less than"),
    (["policies", "check"], "no policy is configured"),
    (["policies", "check", "--config", "missing.toml"], "missing.toml: cannot be read: No such file or directory"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_USAGE, ids=[" ".join(arguments) for arguments, _ in BAD_USAGE])
def test_bad_usage_is_exit_code_2(arguments: list[str], message: str, call: Call) -> None:
    """One message on stderr, nothing on stdout, no traceback."""
    outcome = call(*arguments)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.parametrize("command", ["preview", "delete", "explain x", "policies check"])
def test_a_file_that_is_no_toml_is_exit_code_2(command: str, folder: Path, call: Call) -> None:
    """For every command that reads it."""
    (folder / "retention.toml").write_text("max_deletions = \n", encoding="utf-8")
    outcome = call(*command.split())
    assert outcome.code == 2
    assert outcome.stderr.startswith("artifact-retention: retention.toml: does not parse as TOML: ")
    assert outcome.stderr.count("\n") == 1


def test_a_rule_for_some_keys_is_refused_beside_a_policy_that_cannot_be_meant(folder: Path, call: Call) -> None:
    """The configured policies are read even when a flag stands in for them: one of them may be keep_all."""
    (folder / "retention.toml").write_text('[[policies]]\nname = "audit"\nkeep_al = true\n', encoding="utf-8")
    outcome = call("delete", "--key", "x", "--keep-last", "3")
    assert outcome.code == 2
    assert 'retention.toml: policy "audit": unknown field keep_al = True' in outcome.stderr


def test_an_argument_that_is_no_text_is_refused(call: Call) -> None:
    """Bytes that cannot be decoded come as lone surrogates, which nobody can send to a server."""
    for arguments in (["explain", "\udcff"], ["delete", "--json", "--key", "a\udcff", "--keep-last", "1"]):
        outcome = call(*arguments)
        assert outcome.code == 2
        assert "\\udcff is not in UTF-8" in outcome.stderr
        assert "Traceback" not in outcome.stderr


def test_hostile_configuration_steers_no_terminal(folder: Path, call: Call) -> None:
    """What it means, and what is wrong with it."""
    policies = '[[policies]]\nname = "a"\nkeep_last = 1\nmatch_types = ["\\u001b[31m*", "\\u202e"]\n'
    file = folder / "a\x1b[31m.toml"
    for text, code in (
        (policies, 0),
        (policies + '"b\\u001b[31m" = 1\n', 2),
        (policies.replace("types", "keys"), 2),
        ('"c\\u001b[31m" = 1\n', 2),
    ):
        file.write_text(text, encoding="utf-8")
        outcome = call("policies", "check", "--config", str(file))
        assert outcome.code == code
        assert (outcome.stdout + outcome.stderr).replace("\n", "").isprintable()


# --- policies check


@pytest.mark.usefixtures("config")
def test_policies_check_says_what_each_policy_means(call: Call) -> None:
    """In the order in which they are tried."""
    outcome = call("policies", "check")
    assert outcome.code == 0
    assert outcome.stdout.splitlines() == [
        "retention.toml: 2 policies, tried in this order",
        "  audit: Keys audit-*: keep everything.",
        "  default: Every key: keep the last 10.",
    ]
    assert outcome.stderr == ""


def test_policies_check_says_what_is_doubtful(folder: Path, call: Call) -> None:
    """It is no error: somebody may mean it."""
    policies = '[[policies]]\nname = "logs"\nkeep_monthly = 12\nexpire_after_days = 30\nmatch_types = ["link"]\n'
    (folder / "retention.toml").write_text(policies, encoding="utf-8")
    outcome = call("policies", "check")
    _policies, link, months = " ".join(outcome.stdout.split()).split("doubtful: ")
    assert link.startswith("policy \"logs\": match_types has 'link'")
    assert months.startswith('policy "logs": keep_monthly = 12 would reach back about 365 days, but expire_after_days = 30')
    assert outcome.code == 0
    assert len(json.loads(call("policies", "check", "--json").stdout)["doubts"]) == 2


@pytest.mark.usefixtures("config")
def test_policies_check_as_json_is_one_document_and_nothing_else(call: Call) -> None:
    """With the sentence beside the fields."""
    outcome = call("policies", "check", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.stdout)
    assert set(document) == {"source", "digest", "policies", "doubts", "expiry", "warnings"}
    assert (document["doubts"], document["warnings"]) == ([], [])
    assert document["source"] == "retention.toml"
    audit, default = document["policies"]
    assert (audit["name"], audit["keep_all"], audit["sentence"]) == ("audit", True, "Keys audit-*: keep everything.")
    assert (default["name"], default["keep_last"]) == ("default", 10)
    assert outcome.stderr == ""


def test_policies_check_says_what_has_no_effect(folder: Path, call: Call) -> None:
    """It is no mistake: several machines may share the file, and only one reaches the database."""
    (folder / "retention.toml").write_text(f'reclaim = "vacuum"\n{POLICIES}', encoding="utf-8")
    outcome = call("policies", "check")
    assert outcome.code == 0
    warning = "retention.toml: reclaim = vacuum is ignored: it applies to deletions in the database, "
    assert outcome.stdout.splitlines()[-1].startswith(f"warning: {warning}")
    (told,) = json.loads(call("policies", "check", "--json").stdout)["warnings"]
    assert told.startswith(warning)


def test_policies_check_reads_the_file_that_the_flag_names(folder: Path, call: Call) -> None:
    """Wherever it is."""
    file = folder / "elsewhere.toml"
    file.write_text(POLICIES, encoding="utf-8")
    outcome = call("policies", "check", "--json", "--config", str(file))
    assert outcome.code == 0
    assert json.loads(outcome.stdout)["source"] == str(file)


def test_a_mistake_as_json_is_one_document_and_nothing_else(folder: Path, call: Call) -> None:
    """The error is the document; stderr has its message, with every problem."""
    (folder / "retention.toml").write_text('[[policies]]\nname = "a"\nkeep_last = -1\nkeep_lst = 2\n', encoding="utf-8")
    outcome = call("policies", "check", "--json")
    assert outcome.code == 2
    document = json.loads(outcome.stdout)
    assert set(document) == {"error"}
    assert document["error"].splitlines() == [
        'retention.toml: policy "a": keep_last = -1: input should be greater than or equal to 0',
        'retention.toml: policy "a": unknown field keep_lst = 2',
    ]
    assert outcome.stderr == f"artifact-retention: {document['error']}\n"


# --- in a process of its own

CLI = ("-m", "prefect_artifact_retention.flows.cli")
NO_SERVER = {"PREFECT_API_URL": "http://127.0.0.1:1/api"}


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run our own interpreter with nothing of the user's Prefect."""
    environment = isolated_environment(folder / "prefect") | variables
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_an_unreachable_server_is_one_clear_line(folder: Path) -> None:
    """Exit code 1, the address, no traceback; as JSON too."""
    address = NO_SERVER["PREFECT_API_URL"]
    process = run(folder, *CLI, "preview", "--json", **NO_SERVER)
    assert process.returncode == 1, process.stderr
    assert process.stderr.startswith(f"artifact-retention: cannot reach the Prefect server at {address}")
    assert process.stderr.count("\n") == 1
    assert process.stderr.removeprefix("artifact-retention: ").strip() == json.loads(process.stdout)["error"]


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize(
    "command",
    ["delete", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("preview", "explain x", "preview --json"))],
)
def test_ctrl_c_while_the_server_does_not_answer_is_one_sentence_and_exit_code_130(command: str, folder: Path) -> None:
    """Whatever is being waited for; as JSON, the sentence is the document."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        process = subprocess.Popen(
            [sys.executable, *CLI, *command.split()],
            cwd=folder,
            env=isolated_environment(folder / "prefect")
            | {"PREFECT_API_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/api"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_ctrl_c,  # noqa: PLW1509 - it only sets a signal
        )
        with process, silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
    sentence = "interrupted; a rerun goes on where this one stopped" if command == "delete" else "interrupted"
    assert (process.returncode, stderr) == (130, f"artifact-retention: {sentence}\n")
    assert stdout == ("" if "--json" not in command else json.dumps({"error": sentence}, indent=2) + "\n")


@pytest.mark.usefixtures("config")
def test_a_rule_that_is_off_stands_beside_one_that_is_on(capsys: pytest.CaptureFixture[str]) -> None:
    """A zero is refused only where nothing else is kept; here the call gets as far as the server."""
    with talking_to(NO_SERVER["PREFECT_API_URL"]):
        assert main(["preview", "--key", "x", "--keep-last", "0", "--keep-within-days", "3"]) == 1
    assert "cannot reach the Prefect server" in capsys.readouterr().err


@pytest.mark.usefixtures("config")
def test_policies_are_checked_without_prefect(folder: Path) -> None:
    """Its import takes seconds, and a check in CI needs none of it."""
    program = (
        "import sys; from prefect_artifact_retention.flows.cli import main; "
        "code = main(['policies', 'check']); sys.exit(code or bool({'prefect', 'httpx', 'sqlalchemy'} & sys.modules.keys()))"
    )
    process = run(folder, "-c", program)
    assert process.returncode == 0, process.stderr


@pytest.mark.usefixtures("config")
def test_a_reader_that_has_gone_is_no_traceback(folder: Path) -> None:
    """As `head` does, which has what it wants."""
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in ([], ["--json"], ["--json", "--config", "missing.toml"]):
        process = subprocess.run(
            [sys.executable, "-m", "prefect_artifact_retention.flows.cli", "policies", "check", *arguments],
            cwd=folder,
            env=isolated_environment(folder / "prefect"),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
        assert process.returncode == 1
        assert "Traceback" not in process.stderr
        assert process.stderr.count("\n") == ("missing.toml" in arguments)
    os.close(writing)


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("arguments", ["policies check", "policies check --json", "policies schema"])
def test_a_full_disk_is_one_sentence_and_exit_code_1(folder: Path, arguments: str) -> None:
    """And no traceback, however long the output is."""
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [sys.executable, *CLI, *arguments.split()],
            cwd=folder,
            env=isolated_environment(folder / "prefect"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    said = "artifact-retention: the output could not be printed: No space left on device\n"
    assert (process.returncode, process.stderr) == (1, said)


def test_an_output_that_is_not_in_utf_8_has_escapes(folder: Path) -> None:
    """As in a container or a job of cron with another locale."""
    (folder / "retention.toml").write_text('[[policies]]\nname = "täglich"\nkeep_last = 3\n', encoding="utf-8")
    process = run(folder, *CLI, "policies", "check", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (process.returncode, process.stderr) == (0, "")
    assert "t\\xe4glich: " in process.stdout
    process = run(folder, *CLI, "policies", "check", "--config", "täglich.toml", PYTHONIOENCODING="ascii")
    assert process.returncode == 2
    assert "t\\xe4glich.toml: cannot be read" in process.stderr


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("arguments", ["preview", "delete", "delete --json"])
def test_what_prints_the_report_is_imported_before_the_run(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that fails, as with a library of another version, no report of deletions is lost."""
    monkeypatch.setitem(sys.modules, "prefect_artifact_retention.flows.terminal", None)
    monkeypatch.delattr("prefect_artifact_retention.flows.terminal", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", NO_SERVER["PREFECT_API_URL"])
    with pytest.raises(ImportError, match="terminal"):
        main(arguments.split())


def test_a_bad_limit_is_refused_though_the_environment_has_a_good_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag goes before the environment, its mistake too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARTIFACT_RETENTION_MAX_DELETIONS", "5")
    assert main(["delete", "--key", "x", "--keep-last", "1", "--max-deletions", "-1"]) == 2
    assert "command line: max_deletions = -1" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [("PREFECT_CLIENT_MAX_RETRIES", "many", "max_retries"), ("PREFECT_CLIENT_CUSTOM_HEADERS", "secret", "custom_headers")],
)
def test_a_setting_of_prefect_that_is_invalid_is_exit_code_2(config: Path, variable: str, value: str, field: str) -> None:
    """Prefect reads its settings when it is imported; no traceback, and no value, which may be a secret."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect_artifact_retention.flows.cli", "preview", "--json"],
        cwd=config.parent,
        env=isolated_environment(config.parent) | {"PREFECT_API_URL": "http://127.0.0.1:9/api", variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    message = json.loads(done.stdout)["error"]
    assert "a PREFECT_... variable or the active Prefect profile is invalid" in message
    assert field in message
    assert value not in message

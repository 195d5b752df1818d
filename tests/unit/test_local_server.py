"""The server of the demo and of the tests, where it does not start; that it does, every integration test shows."""

from pathlib import Path

import pytest
from prefect_artifact_retention.flows.local_server import local_server
from prefect_artifact_retention.policies import RetentionError


def interpreter(folder: Path, script: str) -> str:
    """What stands in for a Python whose Prefect server does this."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def test_a_server_whose_libraries_are_too_new_is_told_of_with_the_way_out(tmp_path: Path) -> None:
    """By the last line of its log, and the extra that brings what it needs."""
    python = interpreter(tmp_path, "echo Traceback; echo 'TypeError: an unexpected \x1b[31margument'; exit 1")
    with local_server(tmp_path / "home", python=python) as server, pytest.raises(RetentionError) as caught:
        server.wait()
    message = str(caught.value)
    assert "did not start (TypeError: an unexpected \\x1b[31margument; see " in message
    assert "extra `server`" in message
    assert str(tmp_path / "home" / "server.log") in message


def test_a_server_that_ends_without_a_word_is_told_of_too(tmp_path: Path) -> None:
    """Its log is empty then."""
    with (
        local_server(tmp_path / "home", python=interpreter(tmp_path, "exit 1")) as server,
        pytest.raises(RetentionError, match=r"did not start \(no message; see "),
    ):
        server.wait()

"""The figures at a real push gateway of Prometheus: what a second push replaces, and how Prometheus would read them."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from urllib.request import urlopen

import pytest
from prefect_artifact_retention.flows.metrics import Collected, push
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.tasks.history import Row
from prefect_artifact_retention.tasks.metrics import collect_metrics
from prometheus_client.parser import text_string_to_metric_families
from watchdog import end_with_us

SERVER = "http://prefect.invalid/api"


def collected(server: str, **versions_after: int) -> Collected:
    """The figures of a server with one run of each scope, and of the versions that it has left."""
    numbers = dict.fromkeys(("keys_seen", "stale", "deleted", "bytes_before", "bytes_after", "seconds"), 1)
    run = {"when": "2026-11-28 03:00", "run": "rested-owl", "mode": "delete", "outcome": "completed", **numbers}
    rows = [
        Row.model_validate(run | {"scope": scope, "versions_before": left + 1, "versions_after": left})
        for scope, left in versions_after.items()
    ]
    return Collected(server, collect_metrics(server, rows))


@pytest.fixture
def push_gateway() -> Iterator[str]:
    """The address of a running push gateway. Where there is none, the test is skipped."""
    command = next(filter(None, map(shutil.which, ("prometheus-pushgateway", "pushgateway"))), None)
    if not command:
        pytest.skip("there is no pushgateway command")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--web.listen-address=127.0.0.1:{port}", "--persistence.file="]
    process = subprocess.Popen([command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end_with_us(process.pid)
    try:
        for _poll in range(200):
            assert process.poll() is None
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def shown(address: str, name: str) -> Mapping[tuple[str, str], float]:
    """What it shows of one figure, by server and scope."""
    with urlopen(f"{address}/metrics") as answer:  # noqa: S310 - of our own gateway
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.labels["server"], sample.labels["scope"]): sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"artifact_retention_{name}"
        }


def test_a_second_push_replaces_the_figures_of_its_server_and_of_no_other(push_gateway: str) -> None:
    """Those of a scope that is no more are gone."""
    push(push_gateway, collected(SERVER, daily=90, weekly=8))
    push(push_gateway, collected("http://other.invalid/api", daily=5))
    push(push_gateway, collected(SERVER, daily=70))
    assert shown(push_gateway, "versions") == {(SERVER, "daily"): 70, ("http://other.invalid/api", "daily"): 5}


def test_a_gateway_that_takes_nothing_is_told(push_gateway: str) -> None:
    """By its own answer."""
    with pytest.raises(StoreError, match="the push gateway answers with 404"):
        push(f"{push_gateway}/elsewhere", collected(SERVER, daily=1))

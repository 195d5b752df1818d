"""The image: small, not root, without secrets, and run by a docker worker from a registry."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from platforms import DEPLOYMENTS, ROOT, Platform, before_you_start, checkout, end, platform, shell_block, wait_for
from watchdog import end_with_us

BASE_IMAGE = "python:3.12-slim"
MAX_MEGABYTES = 400
"""Of which Prefect and what it needs are more than half."""

pytestmark = pytest.mark.docker


def docker(*arguments: str) -> str:
    """Run the docker command and return what it prints."""
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Skip where there is no Docker engine."""
    reached = (
        shutil.which("docker") and subprocess.run(["docker", "version"], check=False, capture_output=True).returncode == 0
    )
    if not reached:
        pytest.skip(f"no Docker engine answers at DOCKER_HOST = {os.environ.get('DOCKER_HOST', '(not set)')}")


@pytest.fixture(scope="module")
def image(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: ARG001
    """The image of this checkout, with a secret beside it that must not get in."""
    folder = checkout(tmp_path_factory.mktemp("build"))
    (folder / ".env").write_text("PREFECT_API_KEY=pnu_secret\n", encoding="utf-8")
    (folder / "flows" / "secret.pem").write_text("secret\n", encoding="utf-8")
    name = f"artifact-retention-test:{uuid4().hex[:12]}"
    docker("build", "--network", "host", "--build-arg", "VERSION=1.2.3", "--tag", name, str(folder))
    yield name
    docker("image", "rm", "--force", name)


def run_image(image: str, *command: str) -> str:
    """Run a command in the image."""
    return docker("run", "--rm", "--network", "none", image, *command)


def test_the_dockerfile_is_clean() -> None:
    """For hadolint, without exceptions."""
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_answers_its_version(image: str) -> None:
    """By the same command as elsewhere."""
    assert run_image(image, "artifact-retention", "--version") == version("prefect-artifact-retention")


def test_the_image_by_itself_does_no_harm(image: str) -> None:
    """It says what it can do."""
    assert "Usage: artifact-retention" in run_image(image)


def test_the_image_runs_as_a_user_without_rights(image: str) -> None:
    """Told by a number, for Kubernetes; its own home is the only place that it can write to."""
    assert run_image(image, "id", "-u") == "10001"
    assert json.loads(docker("image", "inspect", image))[0]["Config"]["User"] == "10001"
    assert run_image(image, "sh", "-c", "touch ~/x && ! touch /opt/retention/x 2>/dev/null && echo fine") == "fine"


def test_the_image_has_no_secrets_and_nothing_to_build_with(image: str) -> None:
    """Nor the repository, nor the tests."""
    files = run_image(
        image, "sh", "-c", "find / -xdev \\( -name .env -o -name .git -o -name '*secret.pem' \\) 2>/dev/null; ls -A"
    )
    assert set(files.split()) <= {".bash_logout", ".bashrc", ".profile", "retention.toml"}
    packages = run_image(image, "sh", "-c", "ls /opt/retention/lib/python3*/site-packages")
    assert {"pip", "setuptools", "pytest"}.isdisjoint(packages.split())
    assert "secret" not in docker("history", "--no-trunc", image)


def test_the_image_is_labelled_and_small(image: str) -> None:
    """With the version that it was built as."""
    inspected = json.loads(docker("image", "inspect", image))[0]
    assert inspected["Config"]["Labels"]["org.opencontainers.image.version"] == "1.2.3"
    base = json.loads(docker("image", "inspect", BASE_IMAGE))[0]
    assert inspected["Size"] - base["Size"] < MAX_MEGABYTES * 10**6


def test_the_image_loads_the_flow_by_its_entrypoint(image: str) -> None:
    """As a worker does."""
    code = (
        "from prefect.flows import load_flow_from_entrypoint as load;"
        "print(load('prefect_artifact_retention.flows.cleanup.artifact_cleanup').name)"
    )
    assert run_image(image, "python", "-c", code) == "artifact-cleanup"


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A registry of our own, on loopback."""
    command = shutil.which("docker-registry")
    if not command:
        pytest.skip("there is no docker-registry command to push to")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(folder / "registry")}, "delete": {"enabled": True}}
    config.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": address}}), encoding="utf-8")
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([command, "serve", config], stdout=log, stderr=log, start_new_session=True)
    end_with_us(process.pid)
    try:

        def answers() -> bool | None:
            try:
                return httpx.get(f"http://{address}/v2/").is_success or None
            except httpx.TransportError:
                return None

        wait_for("the registry", answers)
        yield address
    finally:
        end(process, signal.SIGTERM)


def remove_images(repository: str) -> None:
    """Remove what a test has built and pulled, with the containers that ran it."""
    ids = set(docker("image", "ls", "--quiet", "--filter", f"reference={repository}").split())
    containers = [
        each for image_id in ids for each in docker("ps", "--all", "--quiet", "--filter", f"ancestor={image_id}").split()
    ]
    if containers:
        docker("rm", "--force", *containers)
    if ids:
        docker("image", "rm", "--force", *ids)


def deploy_and_run(made: Platform, address: str) -> None:
    """What docs/deploy.md says, and a nightly run."""
    pulls = "false" if docker("image", "ls", "--quiet", BASE_IMAGE) else "true"
    variables = {
        "ARTIFACT_RETENTION_DEPLOY_PULL_BASE_IMAGE": pulls,
        "ARTIFACT_RETENTION_DEPLOY_BUILD_NETWORK": "host",
        "ARTIFACT_RETENTION_DEPLOY_NETWORK": "host",
    }
    kept = made.fill(["a", "b", "c"])
    commands = [line.replace("localhost:5000", address) for line in shell_block("A docker work pool")]
    process = made.shell([*before_you_start(), *commands], **variables)
    try:
        made.wait_until_deployed(process)
        run = made.run("nightly")
        assert (run["state_type"], run["state"]["message"].split(" (")[0]) == ("COMPLETED", "Deleted 12 versions"), made.log()
    finally:
        end(process, signal.SIGTERM)
    assert made.left() == kept
    assert made.deployments() == DEPLOYMENTS


@pytest.mark.usefixtures("image")
def test_a_docker_work_pool_runs_the_nightly_deployment(tmp_path: Path) -> None:
    """Built, pushed and deployed by one command; the container leaves exactly what the policy keeps.

    Without an image name, nothing is built: the one variable that has no default is named.
    """
    with registry(tmp_path) as address, platform(tmp_path) as made:
        try:
            deploy_and_run(made, address)
            tags = httpx.get(f"http://{address}/v2/artifact-retention/tags/list").json()["tags"]
            assert version("prefect-artifact-retention") in tags
            output = made.prefect("deploy", "--prefect-file", "deployments/docker.yaml", "--all", fails=True)
            assert "not set: ARTIFACT_RETENTION_DEPLOY_IMAGE" in output
        finally:
            remove_images(f"{address}/artifact-retention")

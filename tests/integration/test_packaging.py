"""The wheel, used as its users do: in a folder that has `flows`, `tasks` and `policies` of its own."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]


def test_the_wheel_runs_by_uvx_beside_folders_of_the_same_names(tmp_path: Path) -> None:
    """One import name, so a project's own `policies` is not taken for ours; the license is in both archives."""
    source, project = tmp_path / "source", tmp_path / "project"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in files.stdout.splitlines():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "uv", "build", "-q", "--no-build-isolation", "-o", str(tmp_path), str(source)]
    subprocess.run(build, check=True, timeout=200)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as source_archive, ZipFile(wheel) as wheel_archive:
        assert f"{sdist.name.removesuffix('.tar.gz')}/LICENSE" in source_archive.getnames()
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_archive.namelist())
    for folder in ("flows", "tasks", "stores", "policies"):
        (project / folder).mkdir(parents=True)
        (project / folder / "__init__.py").write_text("raise RuntimeError('this is the user\\'s own')\n")
    (project / "retention.toml").write_text('[[policies]]\nname = "mine"\nkeep_last = 3\n')
    environment = os.environ | {"HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / "prefect")}
    uvx = [
        sys.executable,
        "-m",
        "uv",
        "tool",
        "run",
        "-q",
        "--python",
        sys.executable,
        "--from",
        str(wheel),
        "artifact-retention",
    ]
    for arguments, expected in ((["policies", "check"], "mine: Every key: keep the last 3."), (["--version"], "0.1.0")):
        done = subprocess.run(
            [*uvx, *arguments], cwd=project, env=environment, check=False, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout

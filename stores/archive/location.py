"""Where an archive is: a folder, or an object store through fsspec.

Files appear there whole or not at all, and are never replaced.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, quote_plus
from uuid import uuid4

from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.stores.archive.model import ArchiveError

DATA, MANIFESTS, STAGING = "data", "manifests", "staging"
FOLDERS = (DATA, MANIFESTS, STAGING)

CREDENTIALS = "credentials belong into a block (`archive_block`), or into the environment of the driver"

_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "archive-s3")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "archive-gcs")),
    **dict.fromkeys(("az", "abfs", "abfss"), ("adlfs", "archive-azure")),
}
"""Protocols whose drivers never replace an object if they are told so: the module of each, and the extra that has it."""

_PUBLIC_OPTIONS = {"account_name", "anon", "endpoint_url", "project", "region_name", "signature_version", "use_ssl"}
_MIN_SECRET = 4
"""Values of options with fewer characters are shown in messages: they are switches and numbers."""

_SIGNED = re.compile(r"(?i)((?:sig|signature|credential|token|secret|password|accountkey)=)[^&;\s]+")


class Location(ABC):
    """The files of an archive, by names like `data/x.parquet`. Whatever fails is an `ArchiveError` that says what and why.

    Attributes:
        url: Where it is, without credentials.
        readers: Files that are read at once. More are of use only where each takes long to answer.
    """

    readers: ClassVar[int]

    def __init__(self, url: str) -> None:
        self.url = url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @contextmanager
    def doing(self, action: str) -> Iterator[None]:
        """Turn whatever fails into an error that says what was being done.

        Raises:
            ArchiveError: It failed. The error of the driver is not chained: its text, or a local variable, may have a secret.
        """
        try:
            yield
        except ArchiveError:
            raise
        except Exception as error:  # noqa: BLE001 - drivers raise errors of their own libraries
            text = self.masked(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            raise ArchiveError(f"the archive {self.url}: cannot {action}: {text}") from None

    def masked(self, text: str) -> str:
        """Take out of a text what may be a secret."""
        return _SIGNED.sub(r"\1***", text)

    def publish(self, staged: Path, name: str) -> None:
        """Let a finished file appear under its name.

        Raises:
            ArchiveError: It failed, or there is another file of this name.
        """
        with self.doing(f"write {name}"):
            try:
                self._create(staged, name)
            except FileExistsError:
                # Perhaps an own attempt of which the answer was lost.
                if self.read(name) != staged.read_bytes():
                    raise ArchiveError(f"the archive {self.url}: there is another {name} already") from None

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """Return where to write a file that is to be published, under a name of its own, and remove it in the end."""
        with self.staging() as folder:
            path = folder / f"{name}.{uuid4().hex[:8]}"
            try:
                yield path
            finally:
                # Left over, it is in nobody's way.
                with suppress(OSError):
                    path.unlink()

    @abstractmethod
    def names(self, folder: str) -> dict[str, int]:
        """The files of one of its folders, with their sizes. Never from a cache."""

    def exists(self) -> bool:
        """Whether its folder is there. An object store has none, and says only when it is listed that it is not there."""
        return True

    @abstractmethod
    def others(self) -> list[str]:
        """What is beside its folders."""

    @abstractmethod
    def prepare(self) -> None:
        """Make what must be there before anything is written."""

    @abstractmethod
    def staging(self) -> AbstractContextManager[Path]:
        """Return a context with a folder for files that are to be published."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a small file."""

    @abstractmethod
    def open(self, name: str, size: int) -> AbstractContextManager[Any]:
        """Return a context with a file, or its path, of which pyarrow is to read parts."""

    @abstractmethod
    def copied(self, name: str) -> AbstractContextManager[Path]:
        """Return a context with the path of the file, or of a copy of it."""

    @abstractmethod
    def modified(self, name: str) -> datetime:
        """When a file was written."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    @abstractmethod
    def _create(self, staged: Path, name: str) -> None: ...


class Folder(Location):
    """A folder of this machine: files appear there by a hard link, and are on the disk before that."""

    readers = 3

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def names(self, folder: str) -> dict[str, int]:
        """See `Location`.

        Raises:
            ArchiveError: There is no such archive.
        """
        with self.doing(f"list {folder}/"):
            if not self._path.is_dir():
                raise ArchiveError(f"the archive {self.url}: there is no such folder")
            try:
                with os.scandir(self._path / folder) as entries:
                    return {entry.name: entry.stat().st_size for entry in entries}
            except FileNotFoundError:
                return {}

    def exists(self) -> bool:
        """See `Location`."""
        with self.doing("look at it"):
            try:
                self._path.stat()
            except FileNotFoundError:
                return False
            return True

    def others(self) -> list[str]:
        """See `Location`."""
        with self.doing("list it"):
            return sorted({entry.name for entry in self._path.iterdir()} - {*FOLDERS}) if self.exists() else []

    def prepare(self) -> None:
        """Make its folders."""
        with self.doing("make its folders"):
            for folder in FOLDERS:
                (self._path / folder).mkdir(parents=True, exist_ok=True)
            _sync_folder(self._path)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Return a folder on its own file system: elsewhere, a hard link is not possible."""
        self.prepare()
        yield self._path / STAGING

    def read(self, name: str) -> bytes:
        """See `Location`."""
        with self.doing(f"read {name}"):
            return (self._path / name).read_bytes()

    def open(self, name: str, size: int) -> AbstractContextManager[Path]:  # noqa: ARG002 - an object store needs it
        """See `Location`: the path, because pyarrow reads files faster than Python does."""
        return nullcontext(self._path / name)

    @contextmanager
    def copied(self, name: str) -> Iterator[Path]:
        """Return the file itself."""
        yield self._path / name

    def modified(self, name: str) -> datetime:
        """See `Location`."""
        with self.doing(f"look at {name}"):
            return datetime.fromtimestamp((self._path / name).stat().st_mtime, UTC)

    def remove(self, name: str) -> None:
        """See `Location`."""
        with self.doing(f"remove {name}"):
            path = self._path / name
            path.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def _create(self, staged: Path, name: str) -> None:
        path = self._path / name
        try:
            os.link(staged, path)
        except OSError as error:
            if error.errno in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise ArchiveError(
                    f"the archive {self.url}: its file system has no hard links, by which files appear whole"
                ) from None
            raise
        _sync_folder(path.parent)


class ObjectStore(Location):
    """A bucket or container, through the driver of fsspec for it: an object is put there by one conditional request."""

    readers = 8

    def __init__(self, url: str, protocol: str, options: Mapping[str, Any]) -> None:
        super().__init__(url)
        self._protocol = protocol
        self._options = dict(options)
        self._lock = threading.Lock()

    @cached_property
    def _root(self) -> str:
        return str(self._driver._strip_protocol(self.url)).rstrip("/")  # noqa: SLF001 - there is no other name for it

    @property
    def _driver(self) -> Any:  # noqa: ANN401 - fsspec has no types
        # Some drivers look for credentials on the network when they are made, so that is left to the first request.
        with self._lock:
            return self._connected

    @cached_property
    def _connected(self) -> Any:  # noqa: ANN401
        fsspec = import_module("fsspec")
        # Listings are cached otherwise, and the instance with them; another run's objects would be missing.
        return fsspec.filesystem(self._protocol, **{**self._options, "use_listings_cache": False, "skip_instance_cache": True})

    def masked(self, text: str) -> str:
        """Take the values of options out of a text, longest first."""
        for secret in sorted({*_secrets(self._options)}, key=len, reverse=True):
            for form in (secret, quote(secret, safe=""), quote_plus(secret)):
                text = text.replace(form, "***")
        return super().masked(text)

    def names(self, folder: str) -> dict[str, int]:
        """See `Location`. A bucket that is not there is an error, a prefix without objects is none."""
        with self.doing(f"list {folder}/"):
            start = f"{self._root}/{folder}/"
            found = self._driver.find(start, detail=True)
            return {name.removeprefix(start): int(info["size"]) for name, info in found.items() if name != start}

    def others(self) -> list[str]:
        """See `Location`."""
        with self.doing("list it"):
            try:
                found = self._driver.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            return sorted({name.rstrip("/").removeprefix(f"{self._root}/") for name in found} - {*FOLDERS, self._root})

    def prepare(self) -> None:
        """See `Location`: nothing."""

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Return a temporary folder."""
        with self.doing("make a temporary folder"):
            folder = tempfile.TemporaryDirectory(prefix="artifact-retention-", ignore_cleanup_errors=True)
        with folder as path:
            yield Path(path)

    def read(self, name: str) -> bytes:
        """See `Location`."""
        with self.doing(f"read {name}"):
            return bytes(self._driver.cat_file(f"{self._root}/{name}"))

    def open(self, name: str, size: int) -> Any:  # noqa: ANN401
        """See `Location`."""
        # Read ahead, a driver would fetch all of the payloads between two columns.
        return self._driver.open(f"{self._root}/{name}", "rb", cache_type="none", size=size)

    @contextmanager
    def copied(self, name: str) -> Iterator[Path]:
        """Return a copy, for as long as the context is open."""
        with self.staging() as folder:
            with self.doing(f"read {name}"):
                self._driver.get_file(f"{self._root}/{name}", str(folder / "copy"))
            yield folder / "copy"

    def modified(self, name: str) -> datetime:
        """See `Location`."""
        with self.doing(f"look at {name}"):
            when: datetime = self._driver.modified(f"{self._root}/{name}")
            return when if when.tzinfo else when.replace(tzinfo=UTC)

    def remove(self, name: str) -> None:
        """See `Location`."""
        with self.doing(f"remove {name}"), suppress(FileNotFoundError):
            self._driver.rm_file(f"{self._root}/{name}")

    def _create(self, staged: Path, name: str) -> None:
        self._driver.put_file(str(staged), f"{self._root}/{name}", mode="create")


def open_location(url: str, options: Mapping[str, Any]) -> Location:
    """Find out where an archive is. Nothing is asked of the network yet.

    Raises:
        ConfigurationError: The URL has credentials, or is of a file system that cannot have an archive, or for which a driver
            is not installed; or a folder is relative, or there is a file in its place or above it.
    """
    url = url.strip()
    protocol, separator, rest = url.partition("://")
    if not separator or protocol == "file":
        path = Path(rest if separator else url)
        with suppress(RuntimeError):  # there is no such user
            path = path.expanduser()
        if not path.is_absolute():
            # It is not quoted: it may be a misspelt URL with a secret.
            raise ConfigurationError(
                "the folder of an archive must be absolute, as in /srv/archive or file:///srv/archive; "
                "an object store is s3://NAME/FOLDER"
            )
        if file := _file_at(path):
            raise ConfigurationError(f"an archive is in a folder, and {file} is a file")
        return Folder(path)
    # The URL is not quoted before it is known to have no secret.
    if protocol not in _EXTRAS:
        known = ", ".join(f"{name}://" for name in _EXTRAS)
        raise ConfigurationError(f"an archive is in a folder, or in an object store ({known}); {protocol!r} is neither")
    host = rest.partition("/")[0]
    if "?" in rest or "#" in rest or ":" in host or ("@" in host and _EXTRAS[protocol][0] != "adlfs"):
        raise ConfigurationError(f"the URL of an archive is {protocol}://NAME/FOLDER, without parameters; {CREDENTIALS}")
    if not host:
        raise ConfigurationError(f"the URL of an archive is {protocol}://NAME/FOLDER; {url!r} has no name")
    driver, extra = _EXTRAS[protocol]
    try:
        import_module("fsspec")
        import_module(driver)
    except ImportError as error:
        raise ConfigurationError(
            f"an archive at {protocol}:// needs {driver}: pip install 'prefect-artifact-retention[{extra}]' ({error})"
        ) from None
    return ObjectStore(url.rstrip("/"), protocol, options)


def _file_at(path: Path) -> Path | None:
    """Return what is no folder in the place of a folder, or above it; None if nothing is there yet."""
    for each in (path, *path.parents):
        # One that may not be looked at is told when the archive is read or written.
        with suppress(OSError):
            if each.exists():
                return None if each.is_dir() else each
    return None


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that is on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _secrets(options: Any) -> Iterator[str]:  # noqa: ANN401 - whatever a driver takes
    """Yield the texts in options that may be secret; of a connection string, each value as well."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            if name not in _PUBLIC_OPTIONS or "@" in str(value):
                yield from _secrets(value)
    elif isinstance(options, list | tuple | set):
        for value in options:
            yield from _secrets(value)
    elif hasattr(options, "get_secret_value"):
        yield from _secrets(options.get_secret_value())
    else:
        text = options.decode("utf-8", "replace") if isinstance(options, bytes) else str(options)
        parts = [text, *(part.partition("=")[2] for part in re.split(r"[;&?]", text))]
        yield from (part for part in parts if len(part) >= _MIN_SECRET and part not in {"True", "False", "None"})

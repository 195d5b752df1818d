"""Reads the address of a database as PostgreSQL's users and Prefect's own setting write it.

asyncpg, which connects, knows most of libpq's parameters. The others are translated here, or refused by name, because a
parameter that silently does not apply may be one of security.
"""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.schema import WAY_OUT

LOOKS = f"the database's address must look like postgresql://user:password@host/name or sqlite:////path/file; {WAY_OUT}"

CONNECT_SECONDS = 60.0
"""How long a connection may take to open, unless the address has a `connect_timeout`."""

_SCHEME = re.compile(r"(?P<backend>postgres|postgresql|sqlite)(?:\+\w+)?://")
_HOST = r"(?:\[[^\]]*\]|[^:,/?@\[\]]*)(?::\d*)?"
_REST = re.compile(
    rf"(?:(?P<user>[^:/@]*)(?::(?P<password>[^@]*))?@)?(?P<hosts>{_HOST}(?:,{_HOST})*)(?:/(?P<name>[^?@]*))?(?:\?(?P<query>.*))?"
)
_SETTING = re.compile(r"(?:-c|--)(?P<name>[\w.-]+)=(?P<value>.*)", re.DOTALL)

_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
_CONTENTS = {"sslrootcert": "certificate", "sslcert": "certificate", "sslcrl": "list of revoked certificates"}
_OF_DRIVERS = {
    *("async_fallback", "command_timeout", "max_cacheable_statement_size", "max_cached_statement_lifetime"),
    *("prepared_statement_cache_size", "statement_cache_size"),
}
"""Parameters of SQLAlchemy and asyncpg for what this package sets itself: prepared statements, and timeouts of statements."""

_NO_EFFECT: Mapping[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("utf8", "utf-8", "auto"),
    "gssencmode": ("disable", "prefer"),
    "keepalives": ("1",),
    "load_balance_hosts": ("disable",),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
"""Parameters that asyncpg does not have, with the values that ask for no more than it does."""

_SCHEMA = "write options=-csearch_path%3D and the name of the schema"
_REFUSED: Mapping[str, str] = {
    "currentSchema": _SCHEMA,
    "direct_tls": "write sslnegotiation=direct",
    "hostaddr": "write the address as the host",
    "requiressl": "write sslmode=require",
    "schema": _SCHEMA,
    "sslcrldir": "name a file with sslcrl",
    **dict.fromkeys(_NO_EFFECT, "leave it out"),
    **dict.fromkeys(("keepalives_count", "keepalives_idle", "keepalives_interval", "tcp_user_timeout"), "leave it out"),
    **dict.fromkeys(("gssdelegation", "replication", "require_auth", "requirepeer", "sslkeylogfile"), "leave it out"),
    **dict.fromkeys(("max_protocol_version", "min_protocol_version", "scram_client_key", "scram_server_key"), "leave it out"),
}
"""Parameters that asyncpg does not have, with what to do instead."""


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where a PostgreSQL database is, and how to connect to it.

    Attributes:
        dsn: The address, for asyncpg.
        name: The database.
        host: The host or hosts; empty for the default.
        timeout: How long a connection may take to open; None is no limit.
        search_path: The schemas in which its tables are looked for; empty for the role's own.
        secrets: What must not be shown.
    """

    dsn: str
    name: str
    host: str
    timeout: float | None
    search_path: str
    secrets: tuple[str, ...]


def is_sqlite(text: str) -> bool:
    """Return whether this is the address of a SQLite database.

    Raises:
        StoreError: It is the address of neither SQLite nor PostgreSQL.
    """
    scheme = _SCHEME.match(text)
    if not scheme:
        # The address may have a password, so it is not quoted.
        raise StoreError(LOOKS)
    return scheme["backend"] == "sqlite"


def read_postgres_address(text: str) -> PostgresAddress:
    """Read the address of a PostgreSQL database. The name of a driver in it is ignored.

    Raises:
        StoreError: It is none, or has a parameter that is not supported.
    """
    _scheme, _, rest = text.partition("://")
    found = _REST.fullmatch(rest)
    # Also one behind a question mark: that, too, may be of the password, of which the rest would pass for the host.
    if rest.count("@") > 1:
        raise StoreError(
            "the database's address has more than one @: in its user name, password and parameters, @ is written as %40, "
            f"/ as %2F, : as %3A, ? as %3F, and so on; {WAY_OUT}"
        )
    if not found:
        raise StoreError(LOOKS)
    parameters = _parameters(found["query"] or "")
    user, password = (unquote(found[name] or "") for name in ("user", "password"))
    search_path = parameters.pop("search_path", "")
    if options := parameters.pop("options", ""):
        settings = _settings(options)
        search_path = settings.pop("search_path", search_path)
        parameters |= settings
    timeout = _timeout(parameters)
    _check_files(parameters)
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    name = unquote(found["name"] or "")
    dsn = f"postgresql://{login}{found['hosts']}/{quote(name, safe='')}"
    hosts = found["hosts"] or parameters.get("host", "")
    return PostgresAddress(
        dsn=f"{dsn}?{urlencode(parameters, quote_via=quote)}" if parameters else dsn,
        name=name or parameters.get("dbname") or parameters.get("database") or user,
        host=",".join(re.sub(r":\d*$", "", unquote(host)) for host in hosts.split(",")),
        timeout=timeout,
        search_path=search_path,
        secrets=tuple(
            secret
            for secret in (password, quote(password), parameters.get("password"), parameters.get("sslpassword"))
            if secret
        ),
    )


def _parameters(query: str) -> dict[str, str]:
    """Read the parameters, under the names that asyncpg has for them.

    Raises:
        StoreError: One is not supported.
    """
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query):
        if value.lower() in _NO_EFFECT.get(name, ()) or name in _OF_DRIVERS:
            continue
        if way := _REFUSED.get(name):
            raise StoreError(f"the database's address: {name} is not supported; {way}")
        # SQLAlchemy has several hosts as several parameters.
        several = name in {"host", "port"} and name in parameters
        parameters[name] = f"{parameters[name]},{value}" if several else value
    if "ssl" in parameters:
        parameters.setdefault("sslmode", parameters.pop("ssl"))
    if fallback := parameters.pop("fallback_application_name", ""):
        parameters.setdefault("application_name", fallback)
    return parameters


def _settings(options: str) -> dict[str, str]:
    """Read the settings in the parameter `options`: `-c name=value` and `--name=value`.

    They are not passed on as they are, because PgBouncer refuses the parameter, or ignores it.

    Raises:
        StoreError: There is something else in it.
    """
    settings: dict[str, str] = {}
    # A backslash makes the next character a part of the value.
    words = [re.sub(r"\\(.)", r"\1", word) for word in re.split(r"(?<!\\)\s+", options.strip())]
    while words:
        word = words.pop(0)
        setting = _SETTING.fullmatch(f"-c{words.pop(0)}" if word == "-c" and words else word)
        if not setting:
            raise StoreError(f"the database's address: {word} in options is not supported; write -cNAME%3DVALUE")
        settings[setting["name"].replace("-", "_")] = setting["value"]
    return settings


def _timeout(parameters: dict[str, str]) -> float | None:
    """Take the time that a connection may take to open out of the parameters; as with libpq, 0 is no limit."""
    texts = [parameters.pop(name, "") for name in ("connect_timeout", "timeout")]
    text = texts[0] or texts[1]
    try:
        seconds = float(text or CONNECT_SECONDS)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise StoreError("the database's address: connect_timeout is no number of seconds")
    return seconds if seconds > 0 else None


def _check_files(parameters: Mapping[str, str]) -> None:
    """Check that the files that the address names can be read: the errors of the libraries do not name them."""
    if parameters.get("sslrootcert") == "system":
        raise StoreError(
            "the database's address: sslrootcert=system is not supported; name the file with the certificates, such as "
            f"{ssl.get_default_verify_paths().openssl_cafile}"
        )
    for name in _FILES:
        if file := parameters.get(name):
            try:
                Path(file).open("rb").close()
                if what := _CONTENTS.get(name):
                    ssl.create_default_context(cafile=file)
            except ssl.SSLError:
                raise StoreError(f"the database's address: {name}: {file} holds no {what}") from None
            except OSError as error:
                raise StoreError(f"the database's address: {name}: {file} cannot be read: {error.strerror}") from None
    if (certificate := parameters.get("sslcert")) and (key := parameters.get("sslkey")):
        try:
            # Without a password, OpenSSL would ask for one on the terminal.
            ssl.create_default_context().load_cert_chain(certificate, key, lambda: parameters.get("sslpassword", ""))
        except ssl.SSLError:
            raise StoreError(
                f"the database's address: sslkey: {key} holds no key of the certificate {certificate}, or sslpassword is wrong"
            ) from None

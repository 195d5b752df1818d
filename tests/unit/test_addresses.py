"""Addresses of databases, as PostgreSQL's users, Prefect and the vendors of servers write them."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import certifi
import pytest
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.addresses import CONNECT_SECONDS, is_sqlite, read_postgres_address

CA = certifi.where()


def parameters(text: str) -> dict[str, str]:
    """What asyncpg is given beside host, login and database."""
    return {name: values[0] for name, values in parse_qs(urlsplit(read_postgres_address(text).dsn).query).items()}


@pytest.mark.parametrize("driver", ["", "+asyncpg", "+psycopg", "+psycopg2", "+pg8000"])
def test_the_driver_in_an_address_does_not_matter(driver: str) -> None:
    """The address may be that of another program; the package has a driver of its own."""
    for backend in ("postgresql", "postgres"):
        text = f"{backend}{driver}://user:p@host:6432/prefect"
        assert not is_sqlite(text)
        assert read_postgres_address(text).dsn == "postgresql://user:p@host:6432/prefect"


@pytest.mark.parametrize(
    ("text", "host", "netloc"),
    [
        ("postgresql://h1:5432,h2:5433/db", "h1,h2", "h1:5432,h2:5433"),
        ("postgresql://u@[::1]:5432/db", "[::1]", "u:@[::1]:5432"),
        ("postgresql://u@%2Frun%2Fpostgresql/db", "/run/postgresql", "u:@%2Frun%2Fpostgresql"),
        ("postgresql:///db", "", ""),
    ],
)
def test_hosts_are_what_libpq_takes_for_hosts(text: str, host: str, netloc: str) -> None:
    """Several of them, addresses of IPv6, a folder with a socket, or none."""
    address = read_postgres_address(text)
    assert (address.host, urlsplit(address.dsn).netloc, address.name) == (host, netloc, "db")


def test_hosts_may_be_parameters() -> None:
    """As libpq has a socket's folder, and as SQLAlchemy has several hosts."""
    assert read_postgres_address("postgresql://u@/db?host=/run/postgresql").host == "/run/postgresql"
    assert parameters("postgresql://u@/db?host=h1:5432&host=h2:5433")["host"] == "h1:5432,h2:5433"


def test_a_password_may_have_any_character_that_sqlalchemy_reads() -> None:
    """The address is the server's own, which SQLAlchemy reads."""
    address = read_postgres_address("postgresql://user:p#a?s/s:%40@host/db")
    assert address.dsn == "postgresql://user:p%23a%3Fs%2Fs%3A%40@host/db"
    assert "p#a?s/s:@" in address.secrets


@pytest.mark.parametrize("rest", ["@", "/x@", "?x@", "/x?y@", "?x=y@"])
def test_a_password_with_a_bare_at_sign_is_refused_and_not_shown(rest: str) -> None:
    """Whatever follows it, or what is behind it would pass for the host, which messages name."""
    with pytest.raises(StoreError, match=r"more than one @: .* written as %40") as refused:
        read_postgres_address(f"postgresql://user:p@wr0ng-horse{rest}127.0.0.1:9/db")
    assert "wr0ng" not in str(refused.value)


@pytest.mark.parametrize(
    "query",
    [
        "options=-csearch_path%3Dprefect",
        "options=-c%20search_path%3Dprefect",
        "options=--search-path%3Dprefect",
        "options=-c search_path=prefect",
        "search_path=prefect",
        "options=-cwork_mem%3D8MB%20-csearch_path%3Dprefect",
    ],
)
def test_a_search_path_is_taken_out_however_it_is_written(query: str) -> None:
    """It is set in each transaction, because PgBouncer passes none on."""
    text = f"postgresql://host/db?{query}"
    assert read_postgres_address(text).search_path == "prefect"
    assert not {"options", "search_path"} & parameters(text).keys()
    assert parameters(text) == ({"work_mem": "8MB"} if "work_mem" in query else {})


def test_a_search_path_of_several_schemas_is_read() -> None:
    """A backslash makes a blank part of a value, as PostgreSQL reads it."""
    text = "postgresql://host/db?options=-csearch_path%3Dprefect%2C%5C%20public"
    assert read_postgres_address(text).search_path == "prefect, public"


def test_parameters_of_libpq_that_asyncpg_has_are_passed_on() -> None:
    """Those of TLS, the choice of a host, and any setting of the server."""
    query = f"sslmode=verify-full&sslrootcert={CA}&target_session_attrs=primary&application_name=cleanup&sslnegotiation=direct"
    assert parameters(f"postgresql://host/db?{query}") == {
        "sslmode": "verify-full",
        "sslrootcert": CA,
        "target_session_attrs": "primary",
        "application_name": "cleanup",
        "sslnegotiation": "direct",
    }


def test_parameters_with_other_names_in_asyncpg_are_translated() -> None:
    """Those of SQLAlchemy, too, as Prefect's own address may have them."""
    assert parameters("postgresql://host/db?ssl=require") == {"sslmode": "require"}
    assert parameters("postgresql://host/db?fallback_application_name=x") == {"application_name": "x"}
    assert parameters("postgresql://host/db?prepared_statement_cache_size=0&command_timeout=60&channel_binding=prefer") == {}


@pytest.mark.parametrize(
    ("query", "seconds"), [("", CONNECT_SECONDS), ("connect_timeout=5", 5), ("timeout=7.5", 7.5), ("connect_timeout=0", None)]
)
def test_a_connection_may_take_as_long_as_the_address_says(query: str, seconds: float | None) -> None:
    """As with libpq, 0 is no limit."""
    assert read_postgres_address(f"postgresql://host/db?{query}").timeout == seconds


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("channel_binding=require", "channel_binding is not supported; leave it out"),
        ("gssencmode=require", "gssencmode is not supported"),
        ("hostaddr=10.0.0.1", "hostaddr is not supported; write the address as the host"),
        ("keepalives_idle=30", "keepalives_idle is not supported"),
        ("schema=prefect", "schema is not supported; write options=-csearch_path%3D"),
        ("currentSchema=prefect", "currentSchema is not supported; write options=-csearch_path%3D"),
        ("options=-f", "-f in options is not supported; write -cNAME%3DVALUE"),
        ("sslrootcert=system", "sslrootcert=system is not supported; name the file"),
        ("sslrootcert=/nowhere/ca.pem", "sslrootcert: /nowhere/ca.pem cannot be read: No such file"),
        ("sslcert=/nowhere/c.pem", "sslcert: /nowhere/c.pem cannot be read: No such file"),
        ("connect_timeout=soon", "connect_timeout is no number of seconds"),
        ("connect_timeout=nan", "connect_timeout is no number of seconds"),
        ("connect_timeout=inf", "connect_timeout is no number of seconds"),
    ],
)
def test_a_parameter_that_cannot_work_is_refused_by_its_name(query: str, words: str) -> None:
    """With the way to say it, and without the password."""
    with pytest.raises(StoreError, match="the database's address: ") as refused:
        read_postgres_address(f"postgresql://user:s3cret@host/db?{query}")
    assert words in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [("sslrootcert", "certificate"), ("sslcert", "certificate"), ("sslcrl", "list of revoked certificates")],
)
def test_a_file_without_what_it_should_hold_is_named(tmp_path: Path, name: str, what: str) -> None:
    """The libraries say no more than that something is wrong."""
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing", encoding="utf-8")
    with pytest.raises(StoreError, match=rf"{name}: .*empty\.pem holds no {what}$"):
        read_postgres_address(f"postgresql://host/db?{name}={empty}")


def test_a_file_without_the_key_of_the_certificate_is_named(tmp_path: Path) -> None:
    """And so is what else may be wrong."""
    empty = tmp_path / "key.pem"
    empty.write_text("nothing", encoding="utf-8")
    with pytest.raises(StoreError, match=r"sslkey: .*key\.pem holds no key of the certificate .*, or sslpassword is wrong$"):
        read_postgres_address(f"postgresql://host/db?sslcert={CA}&sslkey={empty}")

"""Says which variable is to blame where no client can be made, or none reaches a Prefect API.

The messages name variables, never their values: an address of a server or a proxy may have a password in it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from urllib.request import proxy_bypass

import httpx
from prefect.settings import get_current_settings
from prefect_artifact_retention.stores.destination import destination

ADDRESSES = (
    "It looks like http://HOST:4200/api (https:// where the server speaks TLS), "
    "or https://api.prefect.cloud/api/accounts/ACCOUNT/workspaces/WORKSPACE"
)

CERTIFICATE_HINT = "PREFECT_API_SSL_CERT_FILE must name the file with the certificate of the server's authority"

MAX_PORT = 65_535

FORBIDDEN_CHARACTER = "a credential holds a character that HTTP forbids, such as a line break"


def _address_setting() -> str:
    """Return what the address of the API is set by: of a destination, its target."""
    there = destination()
    return f"api_url of target {there.name}" if there else "PREFECT_API_URL"


def address_hint() -> str:
    """Return the doubt about the address, where what answers there is no Prefect API."""
    return f"is {_address_setting()} right? {ADDRESSES}"


def unusable_setting(error: Exception) -> str:
    """Describe why Prefect's client could not be made, by the variable that it was made of."""
    if isinstance(error, UnicodeEncodeError):
        # Its message quotes the credential.
        return FORBIDDEN_CHARACTER
    if unusable := _unusable_certificates() or next(_unusable_proxies(), "") or _unusable_exceptions():
        return unusable
    # The message of an invalid address quotes the part that may be a credential.
    return f"{_address_setting()} is no valid address" if isinstance(error, httpx.InvalidURL) else str(error)


def unusable_port(address: httpx.URL) -> str:
    """Describe which of the address of the API and its proxy has a port that is none; empty if both are fine.

    The HTTP client does not look at it before it connects, and then raises an error that is none of its own.
    """
    if (address.port or 0) > MAX_PORT:
        return f"{_address_setting()} is no valid address: its port is above {MAX_PORT}"
    variable = _proxy_variable(address)
    if variable and (_proxy(os.environ[variable]).url.port or 0) > MAX_PORT:
        return f"{variable} names a proxy whose port is above {MAX_PORT}"
    return ""


def connection_hint(error: httpx.RequestError, address: httpx.URL, *, has_answered: bool) -> str:
    """Return what may be wrong where a request got no answer, to be appended to its error; empty if nothing is known.

    Args:
        error: The error.
        address: The address of the API.
        has_answered: Whether the server has answered an earlier request, so that its address is right.
    """
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"; {CERTIFICATE_HINT}"
    through = f", through the proxy that {variable} names" if (variable := _proxy_variable(address)) else ""
    is_answer_of_tls = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)
    if not has_answered and (isinstance(error, httpx.UnsupportedProtocol) or "SSL" in text or is_answer_of_tls):
        return f"{through}; {address_hint()}"
    return through


def _unusable_certificates() -> str:
    """Describe why the file of trusted certificates cannot be used; empty if it can."""
    if not (file := get_current_settings().api.ssl_cert_file):
        return ""
    # Prefect takes the second where the first is not set.
    both = ("PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE")
    variable = next((name for name in both if _is_set(name)), both[0])
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        return f"{variable} names {file}, which holds no certificate"
    except OSError as error:
        return f"{variable} names {file}, which cannot be read: {error.strerror}"
    return ""


def _is_set(variable: str) -> bool:
    return bool(os.environ.get(variable))


def _proxy_variable(address: httpx.URL) -> str:
    """Return the name of the variable that names the proxy for an address; empty if there is none."""
    if proxy_bypass(address.host):
        return ""
    names = (f"{address.scheme}_proxy", "all_proxy")
    return next((variable for name in names for variable in (name, name.upper()) if _is_set(variable)), "")


def _unusable_proxies() -> Iterator[str]:
    """Describe the variables whose proxies the HTTP client does not take; it reads all of them, whatever the address."""
    for variable in (spelt for name in ("https_proxy", "http_proxy", "all_proxy") for spelt in (name, name.upper())):
        if not (value := os.environ.get(variable)):
            continue
        try:
            httpx.AsyncHTTPTransport(proxy=_proxy(value), verify=False)
        except ImportError:
            yield f"{variable} names a SOCKS proxy, which needs the package socksio: pip install 'httpx[socks]'"
        except (ValueError, httpx.InvalidURL):
            yield f"{variable} names no proxy of the form http://HOST:PORT"


def _proxy(value: str) -> httpx.Proxy:
    return httpx.Proxy(value if "://" in value else f"http://{value}")


def _unusable_exceptions() -> str:
    """Describe the variable with the hosts that are reached without a proxy, if the HTTP client does not take it."""
    try:
        httpx.AsyncClient(verify=False)  # noqa: S501 - it sends nothing
    except httpx.InvalidURL:
        variable = "no_proxy" if _is_set("no_proxy") else "NO_PROXY"
        return f"{variable} names what is no host or address, such as a network of IPv6, which is not supported"
    return ""

"""A process with everything imported, from which those that are killed are forked."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest
from crashes import Forge
from prefect_artifact_retention.flows.local_server import local_server
from servers import Server


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Where cleanups start within milliseconds."""
    return Forge(tmp_path_factory.mktemp("forge"))


@pytest.fixture(scope="session")
def revive() -> Iterator[Callable[[Server], None]]:
    """Restart a server that no longer answers, on its database and at its address.

    On SQLite, Prefect's own server now and then keeps a transaction open for ever once a client has died: nobody can write
    then, until somebody restarts it.
    """
    with ExitStack() as stack:

        def restart(server: Server) -> None:
            at_port = int(server.local.address.rpartition(":")[2])
            for process in psutil.process_iter(["cmdline"]):
                if (
                    "prefect.server.api.server:create_app" in (command := process.info["cmdline"] or [])
                    and str(at_port) in command
                ):
                    process.kill()
                    process.wait(20)
            stack.enter_context(local_server(server.local.folder, port=at_port)).wait()

        yield restart

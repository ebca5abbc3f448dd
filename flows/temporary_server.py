"""A Prefect server for one process that has no other: `python -m flows.temporary_server SOCKET PARENT`.

It serves on a socket that its parent opened, without the UI, and ends when its parent does, however that ends.
"""

import os
import socket
import sys
import threading
import time

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
import uvicorn
from prefect.server.api.server import create_app

LOOK_SECONDS = 0.5
END_SECONDS = 5


def serve(descriptor: int, parent: int) -> None:
    """Serve until SIGTERM, or until `parent` is no longer the parent of this process."""
    server = uvicorn.Server(uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on"))
    threading.Thread(target=_end_with, args=(parent, server), daemon=True).start()
    server.run(sockets=[socket.socket(fileno=descriptor)])


def _end_with(parent: int, server: uvicorn.Server) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    server.should_exit = True
    time.sleep(END_SECONDS)  # a request that never ends would hold it
    os._exit(1)


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))

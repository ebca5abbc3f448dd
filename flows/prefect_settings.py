"""Settings that Prefect reads from the environment when it is first imported; imported for that effect, before it.

A value that the environment has already stays; processes that are started from here inherit all of them.
"""

import os
from contextlib import suppress
from pathlib import Path

DEFAULTS = {
    "PREFECT_HOME": str(Path("data/prefect").absolute()),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "attune",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # a stage may be called without a flow
    # A flow that is called from Python, without a server: a loaded machine takes longer to start one than the default.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    # On SQLite the server waits up to 60 s for a lock before it says 503, "try again".  A client that gave up sooner
    # would send its request twice.  A server that is silent for another reason is noticed by flows.connection.
    "PREFECT_API_REQUEST_TIMEOUT": "75",
    # Waits of 2, 4, 8, 16 and 32 s: a server that is restarted is back by then.
    "PREFECT_CLIENT_MAX_RETRIES": "5",
}

for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)
with suppress(OSError):  # Prefect makes no folder but the last, and says so where it cannot
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)

"""Secrets of a run: from the environment, or from Secret blocks of the Prefect server into it."""

import os
from collections.abc import Mapping

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL

from tasks.errors import ConfigError


def load_secrets(names: Mapping[str, str]) -> None:
    """For each environment variable that is not set, load the Secret block of that name into it.

    Raises ConfigError when a block is missing, or holds no text.
    """
    for variable, block in names.items():
        if not os.environ.get(variable):
            os.environ[variable] = _value(variable, block)


def _value(variable: str, block: str) -> str:
    try:
        value = Secret.load(block, _sync=True).get()
    except ValueError:
        raise ConfigError(
            f"secrets.{variable}: there is no Secret block {block!r} at {PREFECT_API_URL.value() or 'the server'}; "
            f"make it in its UI under Blocks, or set {variable} in the environment"
        ) from None
    if not isinstance(value, str) or not value:
        raise ConfigError(f"secrets.{variable}: the Secret block {block!r} holds no text")
    return value

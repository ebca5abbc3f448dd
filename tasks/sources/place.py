"""What the path of a source means, and how it is named in messages."""

import re
import sys
from collections.abc import Sequence
from itertools import takewhile

WEB = ("http://", "https://")

_WILDCARD = re.compile(r"[*?\[]")
_USER = re.compile(r"(?<=://)(?:[^/@:\s]*:\S*|[^/\s]*)@")
_QUERY = re.compile(r"(https?://[^\s?]*\?)\S*[^\s:]")


def is_remote(path: str) -> bool:
    """Whether fsspec opens it; file:// is this machine."""
    return "://" in path and not path.startswith("file://")


def is_glob(path: str) -> bool:
    """Whether it has wildcards; a question mark in a web address is none."""
    return _WILDCARD.search(path.replace("?", "") if path.startswith(WEB) else path) is not None


def fixed_parts(parts: Sequence[str]) -> int:
    """How many parts of a glob, from its start, have no wildcard: its folder."""
    return sum(1 for _ in takewhile(lambda part: not is_glob(part), parts))


def is_hidden(name: str) -> bool:
    """Whether a part of a relative path starts with a dot or an underscore: notes of programs, unfinished files."""
    return any(part.startswith((".", "_")) for part in name.split("/"))


def redacted(text: str) -> str:
    """Text without the user names, passwords and query strings of the URLs in it, and fit to be printed."""
    return _QUERY.sub(r"\1…", _USER.sub("…@", text)).encode("utf-8", "replace").decode("utf-8")


def troubles() -> tuple[type[Exception], ...]:
    """What goes wrong outside of attune while a file is listed or read: of the packages that are loaded."""
    loaded = [(sys.modules[module], name) for module, name in _TROUBLES if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded))


_TROUBLES = [
    ("aiohttp", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
]

"""The failures that attune explains to its user; everything else is a bug and keeps its traceback."""

import errno

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class AttuneError(Exception):
    """A failed run with a plain message: what failed, where, and what to do.  Exit code 1."""

    exit_code = 1


class ConfigError(AttuneError):
    """The configuration was refused before anything ran.  Exit code 2."""

    exit_code = 2


class SourceError(AttuneError):
    """A source is missing, unreadable, empty, not what its name says, or has too many bad rows."""


class EmptySplitError(AttuneError):
    """A split ended without a row."""


class LeakError(AttuneError):
    """Too much of validation or test stands in train as well."""


class ModelError(AttuneError):
    """The base model is missing, incomplete or unsafe to load."""


class TemplateError(AttuneError):
    """A chat template cannot be rendered, or not in a way that training and serving would agree on."""


class TrainingError(AttuneError):
    """Training cannot go on: a non-finite loss, no memory, or nothing to learn from."""


class Interrupted(AttuneError):
    """SIGTERM came.  What was done is kept, and the same command goes on from there.  Exit code 75, "try again"."""

    exit_code = 75


class ExportError(AttuneError):
    """The exported model does not answer as the evaluated one."""


class LedgerError(AttuneError):
    """A stage lost or invented rows: rows in differ from rows kept plus rows rejected."""


class DamagedArtifactError(AttuneError):
    """An artifact's files do not match its manifest."""


def is_disk_trouble(error: OSError) -> bool:
    """Whether the disk is to blame (full, read-only, not ours, broken) and not our code."""
    return error.errno in _DISK

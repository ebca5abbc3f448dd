"""Names of files and folders in an artifact that more than one room knows."""

MANIFEST = "manifest.json"

REJECTED = "rejected"
"""Folder of the rejected rows."""

REPAIRED = "repaired"
"""Folder of texts before and after their repair."""

UNREAD = (REJECTED, REPAIRED)
"""Folders for people.  No stage reads them, so they do not count for the digest of the content."""

RESUME = "resume"
"""Folder of the checkpoints while a stage works; it survives a kill and is never published."""

SPLITS = ("train", "validation", "test")
"""Folders of split and format."""

PACKS = "packs"
"""Folder of format with the packed row of each training row; it is missing where rows are not packed."""

CURVES = "curves.svg"
"""File of fine_tune with the loss curves; a run has a copy of it beside its report."""

LABELS = "labels.json"
"""File of format with the names of the classes, in their order; only classifiers have one."""

"""Names of files and folders in an artifact that more than one room knows."""

MANIFEST = "manifest.json"

REJECTED = "rejected"
"""Folder of the rejected rows.  No stage reads it, so it does not count for the digest of the content."""

RESUME = "resume"
"""Folder of the checkpoints while a stage works; it survives a kill and is never published."""

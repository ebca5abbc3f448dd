"""The fault matrix: each module holds the faults of one group; `python -m faults` runs them (`make faults`)."""

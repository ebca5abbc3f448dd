"""The Prefect flow, its runtime and the command line."""

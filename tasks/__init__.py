"""The seven stages and what they stand on: plain Python that knows nothing of Prefect."""

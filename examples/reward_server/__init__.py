"""Rewards behind HTTP: ``wire`` and ``client`` need no server packages, ``app`` needs FastAPI."""

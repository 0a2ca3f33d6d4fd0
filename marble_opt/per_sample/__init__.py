"""Rows of all rewards from one backward per term: contractions of per-sample gradients within an ordinary backward."""

"""A world of edits small enough for a CPU."""

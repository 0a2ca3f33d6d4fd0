"""Prompts: where they come from, and which ones an epoch trains on."""

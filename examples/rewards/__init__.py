"""Rewards: images, prompts and metadata in, one score per image out."""

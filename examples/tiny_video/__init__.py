"""A small text-to-video world: captions of a moving shape, renderer, and an LTX-2 pipeline that has learned it."""

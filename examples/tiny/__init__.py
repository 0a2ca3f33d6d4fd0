"""A small text-to-image flow model with captions, renderer and black-box rewards of its own."""

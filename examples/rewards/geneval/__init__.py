"""GenEval: objects, counts, colours and positions, checked by a detector and a colour classifier."""

from .reward import geneval

__all__ = ["geneval"]

"""Options of :class:`marble_opt.Marble` that stand on their own: refused here, before anything is built."""

from .distributed import REDUCTIONS

ROUTES = ("auto", "factored", "loop")


def check_options(
    refresh_every: int,
    ema: float,
    max_grad_norm: float | None,
    reduction: str,
    route: str,
    watched: bool,
    probe: float | None,
) -> None:
    """Raise ``ValueError`` for a number out of range or options that do not go together.

    ``watched``: whether a model is given.
    """
    if refresh_every < 1 or int(refresh_every) != refresh_every:
        raise ValueError(f"refresh_every must be a whole number >= 1, got {refresh_every}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {ema}: 0 means no smoothing")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be positive or None, got {max_grad_norm}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if route not in ROUTES or (route == "factored" and not watched):
        raise ValueError(f"route must be one of {ROUTES}, and 'factored' needs model=; got {route!r}")
    if probe is not None and refresh_every != 1:
        raise ValueError(f"probe solves on every step: it needs refresh_every=1, got {refresh_every}")

"""Which way a metric is better, and what it is called."""

HIGHER, LOWER = 1, -1
_DIRECTIONS = {
    "gain/": HIGHER,
    "judge/": HIGHER,
    "composite": HIGHER,
    "worst": HIGHER,
    "judge": HIGHER,
    "diversity": HIGHER,
    "conflict/": LOWER,
    "seconds/step": LOWER,
}


def direction(metric: str) -> int | None:
    """1 if higher is better, −1 if lower is, None for what is neither, or is another metric in other units."""
    for name, sign in _DIRECTIONS.items():
        if metric == name or (name.endswith("/") and metric.startswith(name)):
            return sign
    return None

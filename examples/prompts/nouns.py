"""English noun phrases for GenEval's classes."""

NUMBERS = ("zero", "one", "two", "three", "four")

_PLURALS = {"person": "people", "sheep": "sheep", "knife": "knives", "computer mouse": "computer mice"}
# Words that are counted by another one.
_COUNTED_BY = {"scissors": "pair", "skis": "pair", "broccoli": "head"}


def with_article(phrase: str) -> str:
    """``phrase`` after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(name: str) -> str:
    """The plural of a class that has one."""
    if name in _PLURALS:
        return _PLURALS[name]
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def noun_phrase(name: str, count: int = 1, colour: str = "") -> str:
    """``count`` objects of a class, of a colour if given: "an umbrella", "two buses", "a pair of red scissors"."""
    coloured = f"{colour} {name}" if colour else name
    if name in _COUNTED_BY:
        unit = _COUNTED_BY[name]
        return f"{with_article(unit) if count == 1 else f'{NUMBERS[count]} {plural(unit)}'} of {coloured}"
    if count == 1:
        return with_article(coloured)
    return f"{NUMBERS[count]} {f'{colour} ' if colour else ''}{plural(name)}"

"""Prompts that ask for a text in the image."""

from random import Random

from .partition import is_held_out
from .prompt import Prompt

_CARRIERS = (
    'a storefront sign that says "{}"',
    'a coffee mug with "{}" printed on it',
    'a wooden board with "{}" carved into it',
    'a chalkboard on which somebody wrote "{}"',
    'a neon sign that reads "{}"',
    'a paper bag with the words "{}"',
    'a birthday cake with "{}" in icing',
    'a street poster that announces "{}"',
    'a book whose cover says "{}"',
    'a bus with "{}" on its side',
    'a T-shirt with "{}" across the chest',
    'a brass plate engraved with "{}"',
    'a jar with a label that reads "{}"',
    'a postage stamp with the words "{}"',
    'a brick wall with "{}" sprayed on it',
    'a flag with "{}" stitched on it',
    'a theatre ticket that says "{}"',
    'a doormat with "{}" woven into it',
    'a road sign that reads "{}"',
    'a matchbox with "{}" on the lid',
    'a laptop whose screen shows "{}"',
    'a fishing boat named "{}"',
    'a market stall under a banner that says "{}"',
    'a garden gate with a plate that reads "{}"',
)
_SURROUNDINGS = (
    "",
    "in the rain",
    "at night",
    "in morning light",
    "seen from close by",
    "in front of a plain wall",
    "covered in snow",
    "in a watercolour style",
    "on a sunny day",
    "in black and white",
)
_FIRST = (
    *("open", "fresh", "quiet", "old", "golden", "little", "happy", "north", "river", "summer", "winter", "silver"),
    *("wild", "green", "lucky", "slow", "bright", "grand", "hidden", "royal", "daily", "local", "free", "best"),
    *("warm", "blue", "first", "second", "red", "harbour", "market", "garden", "night", "simple", "good", "new"),
)
_SECOND = (
    *("bread", "coffee", "books", "garden", "street", "house", "flowers", "music", "bakery", "hotel", "kitchen"),
    *("station", "market", "cinema", "studio", "coast", "school", "bridge", "theatre", "tea", "repairs", "fruit"),
    *("tools", "mornings", "stories", "lights", "island", "records", "museum", "gallery", "paint", "shoes", "club"),
)
_SINGLE = (
    *("welcome", "exit", "library", "pharmacy", "closed", "danger", "thanks", "bicycles", "tomorrow", "silence"),
    *("breakfast", "tickets", "parking", "information", "forever", "harvest", "espresso", "laundry", "journey"),
    *("celebrate", "adventure", "marmalade", "lighthouse", "orchestra", "pottery", "honey", "festival", "balance"),
)
_NUMBERED = ("room", "gate", "platform", "line", "route", "studio", "floor", "bus", "track", "hall")
_CASES = (str.upper, str.title, str.lower)


def generate_ocr(count: int, seed: int, held_out: bool = False) -> list[Prompt]:
    """``count`` different prompts with a text of one or two words, or a word and a number, between straight quotes.

    A function of ``count``, ``seed`` and ``held_out`` alone. ``metadata`` is ``{"text": ...}``, the quoted text. A
    fifth of all texts is held out by its hash, whatever its case: no held-out text is quoted in a training prompt.

    Raises ``ValueError`` for a negative ``count``, and where there are not as many prompts.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    random = Random(f"ocr {seed} {held_out}")
    prompts: dict[str, Prompt] = {}
    missed = 0
    while len(prompts) < count:
        words = _words(random)
        if is_held_out("ocr", words) != held_out:
            continue
        text = random.choice(_CASES)(words)
        sentence = f"{random.choice(_CARRIERS).format(text)} {random.choice(_SURROUNDINGS)}".strip()
        missed = missed + 1 if sentence in prompts else 0
        if missed > 1000:
            raise ValueError(f"there are hardly more than {len(prompts)} different prompts, asked for {count}")
        prompts[sentence] = Prompt(sentence, "ocr", {"text": text})
    return list(prompts.values())


def _words(random: Random) -> str:
    """A text in lower case: half of them two words, a quarter one, a quarter a word and a number."""
    kind = random.randrange(4)
    if kind < 2:
        return f"{random.choice(_FIRST)} {random.choice(_SECOND)}"
    if kind == 2:
        return random.choice(_SINGLE)
    return f"{random.choice(_NUMBERED)} {random.randint(1, 99)}"

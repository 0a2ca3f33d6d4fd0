"""What an image should say, and the score of what was read, worked out by hand."""

import pytest

from rewards.ocr_rule import in_reading_order, target_text, text_score


@pytest.mark.parametrize(
    ("read", "target", "lenient", "exact"),
    [
        ("OPEN LATE", "OPEN LATE", 1, 1),
        ("open late", "OPEN LATE", 1, 1 - 8 / 9),  # 8 letters differ, the space does not
        ("OPENLATE", "OPEN LATE", 1, 1 - 1 / 9),
        ("OPEN LAKE", "OPEN LATE", 1 - 1 / 8, 1 - 1 / 9),
        ("OPEN", "OPEN LATE", 1 - 4 / 8, 1 - 5 / 9),
        ("NOW OPEN LATE!", "OPEN LATE", 1, 1 - 5 / 9),  # contained; exact: N, O, W, space and ! are surplus
        ("OPEN LATE OPEN LATE", "OPEN LATE", 1, 0),  # 10 surplus characters for 9
        ("NOW OPEN LAKE", "OPEN LATE", 1 - 4 / 8, 1 - 5 / 9),  # not contained: now, and k for t
        ("BREAD", "HOTEL", 0, 0),  # keeping the e costs as much: 3 before it, 2 after
        ("", "HOTEL", 0, 0),
        ("kitten", "sitting", 1 - 3 / 7, 1 - 3 / 7),
        ("a much longer line than asked for", "tea", 0, 0),  # never below 0
    ],
)
def test_scores(read: str, target: str, lenient: float, exact: float) -> None:
    assert text_score(read, target) == pytest.approx(lenient)
    assert text_score(read, target, exact=True) == pytest.approx(exact)


def test_a_target_of_spaces_is_refused() -> None:
    with pytest.raises(ValueError, match="characters other than spaces"):
        text_score("anything", "  ")


@pytest.mark.parametrize(
    ("prompt", "metadata", "target"),
    [
        ("a dog", {}, None),
        ('a sign that says "OPEN"', {}, None),  # quotes alone make no ocr prompt
        ('a sign that says "OPEN"', {"source": "general"}, None),
        ('a sign that says "OPEN"', {"source": "ocr"}, "OPEN"),
        ("a sign that says “Open Late”", {"source": "ocr"}, "Open Late"),
        ('"FRESH" above "BREAD" on a sign', {"source": "ocr"}, "FRESH BREAD"),
        ('"" and " TEA "', {"source": "ocr"}, "TEA"),
        ('a sign that says "OPEN"', {"source": "ocr", "text": "CLOSED"}, "CLOSED"),
        ("a sign", {"text": "CLOSED"}, "CLOSED"),
    ],
)
def test_targets(prompt: str, metadata: dict, target: str | None) -> None:
    assert target_text(prompt, metadata) == target


@pytest.mark.parametrize(
    ("prompt", "metadata", "message"),
    [
        ("a sign", {"source": "ocr"}, r"the ocr prompt 'a sign' must have the text .* between double quotes"),
        ("a sign that says 'OPEN'", {"source": "ocr"}, "between double quotes"),
        ('a sign that says "OPEN', {"source": "ocr"}, "between double quotes"),
        ('a 12" sign that says "OPEN"', {"source": "ocr"}, "between double quotes"),
        ('a sign that says " "', {"source": "ocr"}, "between double quotes"),
        ("a sign", {"text": " "}, "must be text to be read"),
        ("a sign", {"text": 7}, "must be text to be read, got 7"),
    ],
)
def test_prompts_without_a_target_are_refused(prompt: str, metadata: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_text(prompt, metadata)


def box(left: float, top: float, width: float = 40, height: float = 20) -> list[tuple[float, float]]:
    return [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]


def test_texts_are_ordered_by_line_then_from_the_left() -> None:
    boxes = [box(100, 50), box(0, 104), box(10, 55), box(60, 100), box(0, 0), box(200, 46)]
    assert in_reading_order(boxes, ["c", "e", "b", "f", "a", "d"]) == "a b c d e f"
    assert in_reading_order([], []) == ""


def test_a_line_that_starts_below_the_centre_of_another_is_a_line_of_its_own() -> None:
    assert in_reading_order([box(50, 0), box(0, 21)], ["upper", "lower"]) == "upper lower"

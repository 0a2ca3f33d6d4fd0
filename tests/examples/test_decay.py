"""Decay schedules: presets, formulas, and what is refused."""

import pytest

from trainer.decay import SCHEDULES, check_schedule, decay_at


@pytest.mark.parametrize(
    ("schedule", "decays"),
    [
        ("copy", {0: 0.0, 1000: 0.0}),
        ("slow", {0: 0.0, 100: 0.1, 10_000: 0.5}),
        ("medium", {75: 0.0, 76: 0.0075, 10_000: 0.999}),
        ("crd_ocr_old", {0: 0.25, 10: 0.3, 10_000: 0.999}),
        ("crd_ocr_sampling", {0: 0.0, 75: 0.0, 76: 0.0075, 10_000: 0.999}),
        ("crd_geneval_old", {0: 0.25, 100: 0.35, 10_000: 0.5}),
        ("crd_geneval_sampling", {0: 0.0, 100: 0.1, 10_000: 0.5}),
        ("1 - 1 / (1 + step)", {0: 0.0, 1: 0.5, 3: 0.75}),
        ("0.5 if 10 <= step < 20 else max(0, -1, +1 - 1)", {9: 0.0, 10: 0.5, 19: 0.5, 20: 0.0}),
        (" 1e-1 ", {7: 0.1}),
    ],
)
def test_schedules_have_the_values_of_their_formulas(schedule: str, decays: dict[int, float]) -> None:
    check_schedule("crd.old", schedule)
    assert {step: decay_at(schedule, step) for step in decays} == pytest.approx(decays)


@pytest.mark.parametrize("name", SCHEDULES)
def test_named_schedules_are_decays_at_every_step(name: str) -> None:
    check_schedule("crd.old", name)


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__[0]",
        "step.__class__",
        "open('/etc/passwd')",
        "eval('0')",
        "min.__self__",
        "(lambda: 0)()",
        "[0 for _ in (1,)][0]",
        "(step := 0)",
        "2 ** 3 ** 9",
        "1 << 9999",
        "step @ 2",
        "'0'",
        "True",
        "0j",
        "None",
        "f'{step}'",
        "min(*[0, 1])",
        "min(0, 1, key=abs)",
        "min(0)",
        "max",
        "t",
        "0 if step else 1",
        "0 if step in (1, 2) else 1",
        "0 if not step < 1 else 1",
        "",
        "0; 1",
        "import os",
        "(" * 150,
        "-" * 199 + "1",
        "0" + " + 0" * 100,
        "9" * 199,
        "0\x00",
    ],
)
def test_what_is_no_formula_is_refused(hostile: str) -> None:
    with pytest.raises(ValueError, match=r"crd\.old must be one of") as error:
        check_schedule("crd.old", hostile)
    assert "allowed" in str(error.value) or "formula" in str(error.value)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("0.001 * step", "is 1.02 at step 1020"),
        ("step / (step - 30)", "is -0 at step 0|at step 1:"),
        ("0.5 if step < 90000 else 2", "is 2 at step"),
        ("1 / step", "divides by zero at step 0"),
        ("-0.1", "is -0.1 at step 0"),
        ("1e999", "too large"),
        ("1e308 * 1e308 - 1e308 * 1e308", "is nan at step 0"),
    ],
)
def test_formulas_that_leave_the_range_are_refused_with_the_step(schedule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_schedule("crd.old", schedule)


def test_a_schedule_that_leaves_the_range_unseen_is_refused_when_it_does() -> None:
    schedule = "2 if step == 54321 else 0"
    check_schedule("crd.sampling", schedule)
    with pytest.raises(ValueError, match="is 2 at step 54321: a decay lies in"):
        decay_at(schedule, 54321)

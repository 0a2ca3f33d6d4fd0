"""What goes over the wire arrives, and nothing else does."""

import contextlib
import math
import tracemalloc

import numpy as np
import pytest
from bad_requests import LIMITS, BadBody, bodies, lying_zip, png, text, two_headers
from serving import batch

from reward_server import wire
from reward_server.limits import Budget, Limits, Refused

DECODED = [case for case in bodies() if case.status != 415]


@pytest.mark.parametrize("content_type", [wire.JSON, wire.NPZ])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 24), (16, 64)])
def test_a_round_trip_is_exact(content_type: str, count: int, size: int) -> None:
    metadata = [{"text": "OPEN \u00e9\u6f22", "n": [i, 0.1, None, True, {"a": {}}]} for i in range(count)]
    sent = batch(count, size, prompts=[f'"{i}" \u2603\n' for i in range(count)], metadata=metadata)
    arrived = wire.decode(wire.encode(sent, content_type), content_type, Limits())
    np.testing.assert_array_equal(arrived.images, sent.images)
    assert arrived.images.dtype == np.uint8
    assert (arrived.prompts, arrived.metadata) == (sent.prompts, sent.metadata)


def test_metadata_may_be_left_out() -> None:
    body = wire.encode(batch(2), wire.JSON).replace(b', "metadata": [{}, {}]', b"")
    assert b"metadata" not in body
    assert wire.decode(body, wire.JSON, Limits()).metadata == [{}, {}]


def test_grey_images_become_three_equal_channels() -> None:
    assert wire.decode(text([png(4, 6, "L")]), wire.JSON, Limits()).images.shape == (1, 6, 4, 3)


def test_nan_travels_as_null() -> None:
    assert wire.scores_to_json([0.25, math.nan]) == [0.25, None]
    back = wire.scores_from_json({"scores": [0.25, None, 1]}, 3)
    assert back[::2] == [0.25, 1.0]
    assert math.isnan(back[1])


def test_an_infinite_score_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="infinite score"):
        wire.scores_to_json([math.inf])


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"scores": None}]
    + [{"scores": scores} for scores in ([1.0], ["1", 2], [True, 1], [1, math.inf], [1, math.nan], [[1], [2]])],
)
def test_other_answers_are_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="score"):
        wire.scores_from_json(answer, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, np.float32(1)])
@pytest.mark.parametrize("content_type", [wire.JSON, wire.NPZ])
def test_metadata_that_are_not_json_are_not_sent(content_type: str, value: object) -> None:
    with pytest.raises(ValueError, match="metadata must be JSON values"):
        wire.encode(batch(1, metadata=[{"x": value}]), content_type)


@pytest.mark.parametrize("case", DECODED, ids=lambda case: case.name)
def test_a_bad_body_is_refused_with_its_status_in_little_memory(case: BadBody) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as refused:
            wire.decode(case.body, case.content_type, LIMITS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.status == case.status, refused.value.message
    assert len(refused.value.message) > 10
    assert peak < 8 * LIMITS.body


def test_a_second_header_is_seen_before_its_pixels_are_decoded() -> None:
    with pytest.raises(Refused, match="two headers"):
        wire.decode(text([two_headers()]), wire.JSON, LIMITS)


def test_the_size_in_a_zip_directory_bounds_what_is_unpacked() -> None:
    # 100 MB in 100 kB: reading the member without a size would unpack them all before they are cut.
    assert len(lying_zip(100_000_000)) < LIMITS.body


def test_every_truncation_and_a_thousand_flipped_bits_end_in_a_refusal_or_a_batch() -> None:
    generator = np.random.default_rng(0)
    for content_type in (wire.JSON, wire.NPZ):
        body = wire.encode(batch(1, 4), content_type)
        changed = [body[:i] for i in range(0, len(body), 7)]
        for _ in range(500):
            flipped = bytearray(body)
            flipped[generator.integers(len(body))] ^= 1 << generator.integers(8)
            changed.append(bytes(flipped))
        for damaged in changed:
            with contextlib.suppress(Refused):
                assert wire.decode(damaged, content_type, LIMITS).images.shape == (1, 4, 4, 3)


def test_a_budget_refuses_what_exceeds_it_and_gets_all_back() -> None:
    budget = Budget(100)
    with budget.share() as first, budget.share() as second:
        first.hold(60)
        with pytest.raises(Refused, match="try again") as refused:
            second.hold(50)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
        first.hold(40)
        second.hold(50)
    assert budget.held == 0

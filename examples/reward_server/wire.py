"""What goes over the wire: images, prompts and metadata one way, scores the other. Nothing is ever pickled.

A request is ``POST /score/{reward}`` with one of two bodies, told apart by ``Content-Type``:

``application/json``
    ``{"images": [...], "prompts": [...], "metadata": [...]}``: base64 of PNG files (8-bit RGB or grey, all of one
    size), strings, and objects. ``metadata`` may be left out.
``application/x-npz``
    What ``numpy.savez(file, images=images, request=text)`` writes: ``images`` uint8 [B, H, W, 3], ``text`` the JSON
    of ``{"prompts": [...], "metadata": [...]}``. ``savez_compressed`` will do as well.

Metadata named "image" and "mask" are pictures, and each picture travels once: a request with the field
``"pictures": [data URL, ...]`` beside prompts has indices into it there (``reward_server.pictures``).

Images have 8 bits per channel in both: a float image x in [0, 1] is sent as round(255 x) and scored as that / 255, so
it moves by at most 1/510. An image that came from 8 bits arrives bit for bit. The answer is
``{"scores": [0.3, null, ...], "seconds": 0.02}``, one entry per image, null where the reward does not apply (NaN on
either end); any other status comes with ``{"error": "what is wrong"}``.
"""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .files import decode_pngs, encode_png, unpack_npz
from .limits import Limits, Refused
from .pictures import gather, scatter, size_of

PROTOCOL = 1
JSON, NPZ = "application/json", "application/x-npz"


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, H, W, 3] with B prompts and B metadata objects."""

    images: np.ndarray
    prompts: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """The bytes of its images and of its pictures' texts."""
        return self.images.nbytes + size_of(self.metadata)


def encode(batch: Batch, content_type: str) -> bytes:
    """The body of a request; ``ValueError`` where the metadata are not JSON (NaN included)."""
    metadata, pictures = gather(batch.metadata)
    texts = {"prompts": batch.prompts, "metadata": metadata, **({"pictures": pictures} if pictures else {})}
    try:
        if content_type == JSON:
            images = [base64.b64encode(encode_png(image)).decode() for image in batch.images]
            return json.dumps({"images": images, **texts}, allow_nan=False).encode()
        text = json.dumps(texts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON values, all numbers finite: {error}") from error
    file = io.BytesIO()
    np.savez(file, images=batch.images, request=np.array(text))
    return file.getvalue()


def decode(body: bytes, content_type: str, limits: Limits) -> Batch:
    """The batch in a body that may hold anything; raises ``Refused`` with 400, 413 or 422."""
    if content_type == JSON:
        fields = _fields(body, limits, required={"images", "prompts"})
        batch = _texts(fields, limits)
        images = decode_pngs(fields["images"], limits)
    else:
        images, text = unpack_npz(body, limits)
        batch = _texts(_fields(_utf8(text), limits, required={"prompts"}), limits)
    if not len(images) == len(batch[0]) == len(batch[1]):
        raise Refused(
            422, f"{len(images)} images, {len(batch[0])} prompts and {len(batch[1])} metadata: give B of each"
        )
    return Batch(images, *batch)


def scores_to_json(scores: Sequence[float]) -> list[float | None]:
    """NaN becomes null; an infinite score is the reward's mistake."""
    if any(math.isinf(score) for score in scores):
        raise RuntimeError("the reward gave an infinite score")
    return [None if math.isnan(score) else score for score in scores]


def scores_from_json(answer: Any, count: int) -> list[float]:
    """``count`` scores from a server's answer, null as NaN; ``ValueError`` for anything else."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        raise ValueError(f"expected {count} scores, got {str(answer)[:200]}")
    for score in scores:
        if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
            raise ValueError(f"a score must be a finite number or null, got {score!r}")
    return [math.nan if score is None else float(score) for score in scores]


def _fields(text: bytes, limits: Limits, required: set[str]) -> dict[str, Any]:
    """A JSON object with the fields ``required``, and perhaps metadata."""
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > limits.values:
        raise Refused(413, f"the JSON has more than {limits.values} values")
    try:
        fields = json.loads(text, parse_constant=_not_json, parse_float=_finite)
    except RecursionError:
        raise Refused(422, f"the JSON is nested deeper than {limits.depth}") from None
    except ValueError as error:
        raise Refused(400, f"not JSON: {error}") from None
    names = set(fields) if isinstance(fields, dict) else None
    if names is None or not required <= names or names - required - {"metadata", "pictures"}:
        expected = ", ".join(sorted(required))
        raise Refused(
            422, f"the JSON must be an object with {expected} and, if you like, metadata and pictures; nothing else"
        )
    return fields


def _texts(fields: dict[str, Any], limits: Limits) -> tuple[list[str], list[dict[str, Any]]]:
    prompts = fields["prompts"]
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise Refused(422, "prompts must be a list of strings")
    metadata = fields.get("metadata", [{} for _ in prompts])
    if not isinstance(metadata, list) or not all(isinstance(facts, dict) for facts in metadata):
        raise Refused(422, "metadata must be a list of objects")
    for i, prompt in enumerate(prompts):
        if len(prompt) > limits.prompt:
            raise Refused(413, f"prompt {i} has {len(prompt)} characters, more than {limits.prompt}")
        _utf8(prompt)
    for i, facts in enumerate(metadata):
        if not _within(facts, limits.depth):
            raise Refused(422, f"metadata {i} is nested deeper than {limits.depth}")
        if len(_utf8(json.dumps(facts, ensure_ascii=False))) > limits.metadata:
            raise Refused(413, f"metadata {i} has more than {limits.metadata} bytes as JSON")
    return prompts, scatter(metadata, fields.get("pictures", []), limits)


def _within(value: Any, depth: int) -> bool:
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_within(child, depth - 1) for child in children)
    return True


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Refused(422, "a text holds a lone surrogate: it is not Unicode") from None


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:40]} is beyond the range of a double")
    return value

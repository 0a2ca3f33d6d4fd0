"""What goes over the wire: images, prompts and metadata one way, scores the other. Nothing is ever pickled.

A request is ``POST /score/{reward}`` with one of two bodies, told apart by ``Content-Type``:

``application/json``
    ``{"images": [...], "prompts": [...], "metadata": [...]}``: base64 of PNG files (8-bit RGB or grey, all of one
    size), strings, and objects. ``metadata`` may be left out.
``application/x-npz``
    What ``numpy.savez(file, images=images, request=text)`` writes: ``images`` uint8 [B, H, W, 3], ``text`` the JSON
    of ``{"prompts": [...], "metadata": [...]}``. ``savez_compressed`` will do as well.

Images have 8 bits per channel in both: a float image x in [0, 1] is sent as round(255 x) and scored as that / 255, so
it moves by at most 1/510. An image that came from 8 bits arrives bit for bit. The answer is
``{"scores": [0.3, null, ...], "seconds": 0.02}``, one entry per image, null where the reward does not apply (NaN on
either end); any other status comes with ``{"error": "what is wrong"}``.
"""

import base64
import io
import json
import math
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from .limits import Limits, Refused

PROTOCOL = 1
JSON, NPZ = "application/json", "application/x-npz"
MEMBERS = {"images.npy", "request.npy"}


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, H, W, 3] with B prompts and B metadata objects."""

    images: np.ndarray
    prompts: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.images)


def encode(batch: Batch, content_type: str) -> bytes:
    """The body of a request; ``ValueError`` where the metadata are not JSON (NaN included)."""
    texts = {"prompts": batch.prompts, "metadata": batch.metadata}
    try:
        if content_type == JSON:
            images = [base64.b64encode(_png(image)).decode() for image in batch.images]
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
        images = _pngs(fields["images"], limits)
    else:
        arrays = _npz(body, limits)
        images, text = arrays["images.npy"], arrays["request.npy"]
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise Refused(422, f"images must be uint8 [B, H, W, 3], got {images.dtype} {list(images.shape)}")
        if text.dtype.kind != "U" or text.ndim:
            raise Refused(422, f"request must be one string, got {text.dtype} {list(text.shape)}")
        batch = _texts(_fields(_utf8(str(text)), limits, required={"prompts"}), limits)
        _check_images(*images.shape[:3], limits)
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
    if names is None or not required <= names or names - required - {"metadata"}:
        expected = ", ".join(sorted(required))
        raise Refused(422, f"the JSON must be an object with {expected} and, if you like, metadata; nothing else")
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
    return prompts, metadata


def _pngs(files: Any, limits: Limits) -> np.ndarray:
    """Decode PNG files. All headers are read, and checked, before the first pixel is decoded."""
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise Refused(422, "images must be a list of base64 strings")
    _check_images(len(files), 1, 1, limits)
    data = [_base64(i, file) for i, file in enumerate(files)]
    sizes = [_png_size(i, file) for i, file in enumerate(data)]
    if len(set(sizes)) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sorted(set(sizes))[:5])
        raise Refused(422, f"the images of a request must have one size, these have {found}")
    width, height = sizes[0]
    _check_images(len(files), height, width, limits)
    images = np.empty((len(files), height, width, 3), np.uint8)
    for i, file in enumerate(data):
        try:
            with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
                if image.size != (width, height):
                    raise ValueError("two headers")
                images[i] = np.asarray(image.convert("RGB"))
        except Exception as error:  # what a damaged file raises differs from chunk to chunk
            raise Refused(400, f"image {i} is a damaged PNG: {error}") from None
    return images


def _base64(index: int, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused(400, f"image {index} is not base64: {error}") from None


def _png_size(index: int, file: bytes) -> tuple[int, int]:
    if len(file) < 33 or file[:8] != b"\x89PNG\r\n\x1a\n" or file[12:16] != b"IHDR":
        raise Refused(400, f"image {index} is not a PNG file")
    if not file.endswith(b"IEND\xaeB`\x82"):  # PIL takes a file without its end, if the pixels are there
        raise Refused(400, f"image {index} is a truncated PNG file, or has something behind its end")
    width, height, depth, colour = struct.unpack(">IIBB", file[16:26])
    if depth != 8 or colour not in (0, 2):
        raise Refused(422, f"image {index} must be an 8-bit RGB or grey PNG, without alpha or palette")
    return width, height


def _npz(body: bytes, limits: Limits) -> dict[str, np.ndarray]:
    """The members of an NPZ file; sizes, types and shapes are read, and checked, before an array is made."""
    # The end record of a zip file without a comment, not of the zip64 kind. ZipFile would read a directory of any size.
    signature, entries, directory = struct.unpack("<4s6xHI6x", body[-22:].rjust(22, b"\0"))
    if signature != b"PK\5\6" or body[-42:-38] == b"PK\6\7":
        raise Refused(400, "not an NPZ file as numpy.savez writes it, or the end of one is missing")
    if entries != len(MEMBERS) or directory > 4096:
        raise Refused(422, "the NPZ must hold the arrays images and request, and nothing else")
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as file:
            members = {entry.filename: entry for entry in file.infolist()}
            if set(members) != MEMBERS:
                raise Refused(422, f"the NPZ must hold the arrays images and request, got {sorted(members)}")
            if sum(entry.file_size for entry in members.values()) > limits.decoded:
                raise Refused(413, f"the NPZ unpacks to more than {limits.decoded} bytes")
            return {name: _array(name, _unpacked(file, entry)) for name, entry in members.items()}
    except Refused:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        raise Refused(400, f"not a readable NPZ file: {error}") from None


def _unpacked(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(422, "the NPZ must be stored or deflated, as numpy writes it")
    # With a size, unlike without one, read() unpacks no more than that: the size in the directory may be a lie.
    with file.open(entry) as member:
        return member.read(entry.file_size)


def _array(name: str, data: bytes) -> np.ndarray:
    """The array in an npy file, whose header could promise any size."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise Refused(400, f"{name}: npy version {version} is not read here")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind not in "uU":
        raise Refused(
            422, f"{name} has the type {dtype}; images must be uint8, request a string, objects are never read"
        )
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise Refused(400, f"{name}: its header says {list(shape)} {dtype}, its size is another")
    return np.load(io.BytesIO(data), allow_pickle=False)


def _check_images(count: int, height: int, width: int, limits: Limits) -> None:
    if not (count and height and width):
        raise Refused(422, f"{count} images of {height} x {width}: nothing to score")
    if count > limits.images:
        raise Refused(413, f"{count} images; send at most {limits.images} per request")
    if height * width > limits.pixels:
        raise Refused(413, f"images of {height} x {width} pixels; at most {limits.pixels} pixels are taken")
    if 3 * count * height * width > limits.decoded:
        raise Refused(
            413, f"{count} images of {height} x {width} decode to more than {limits.decoded} bytes; send fewer"
        )


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


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()

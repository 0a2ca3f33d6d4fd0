"""Pictures in metadata on the wire: each once per request, and never the name of a file on the server."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from prompts.pictures import PICTURES

from .limits import Limits, Refused

# How prompts.pictures.data_url begins a picture.
DATA_URL = "data:image/png;base64,"


def gather(metadata: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """``metadata`` with indices in place of their pictures, and the pictures, each once."""
    index: dict[str, int] = {}
    gathered = [
        {
            name: index.setdefault(value, len(index)) if name in PICTURES and isinstance(value, str) else value
            for name, value in facts.items()
        }
        for facts in metadata
    ]
    return gathered, [*index]


def scatter(metadata: Sequence[dict[str, Any]], pictures: Any, limits: Limits) -> list[dict[str, Any]]:
    """``metadata`` with their pictures, given by index or as data URLs; all sizes are checked, nothing is decoded.

    Raises ``Refused`` with 400, 413 or 422: for other values too, a path among them, which would be read here.
    """
    if not isinstance(pictures, list) or not all(isinstance(picture, str) for picture in pictures):
        raise Refused(422, "pictures must be a list of data URLs")
    if len(pictures) > len(PICTURES) * limits.images:
        raise Refused(413, f"{len(pictures)} pictures; send at most {len(PICTURES) * limits.images} per request")
    scattered = []
    for i, facts in enumerate(metadata):
        own = {name: _picture(facts[name], pictures, f"metadata {i}: {name}") for name in PICTURES if name in facts}
        scattered.append({**facts, **{name: picture for name, picture in own.items() if picture is not None}})
    decoded = 3 * sum(_pixels(picture, limits) for picture in {*pictures, *_pictures(scattered)})
    if decoded > limits.decoded:
        raise Refused(413, f"the pictures decode to {decoded} bytes, more than {limits.decoded}; send fewer")
    return scattered


def size_of(metadata: Sequence[Mapping[str, Any]]) -> int:
    """The characters of the distinct pictures in ``metadata``."""
    return sum(map(len, set(_pictures(metadata))))


def _pictures(metadata: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for facts in metadata:
        yield from (value for name in PICTURES if isinstance(value := facts.get(name), str))


def _picture(value: Any, pictures: Sequence[str], place: str) -> str | None:
    if value is None:
        return None
    if type(value) is int and 0 <= value < len(pictures):
        return pictures[value]
    if isinstance(value, str) and value.startswith(DATA_URL):
        return value
    shown = str(value)[:60]
    raise Refused(422, f"{place} must be a data URL of a PNG, or an index into {len(pictures)} pictures, got {shown!r}")


def _pixels(picture: str, limits: Limits) -> int:
    """The pixels of a picture, by its header as PIL will read it."""
    if not picture.startswith(DATA_URL):
        raise Refused(422, f"a picture must be a data URL of a PNG, {DATA_URL}..., got {picture[:60]!r}")
    try:
        data = base64.b64decode(picture.removeprefix(DATA_URL), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = image.width * image.height
    except Exception as error:  # what a damaged file raises differs from chunk to chunk
        raise Refused(400, f"a picture is no PNG in base64: {error}") from None
    if pixels > limits.pixels:
        raise Refused(413, f"a picture of {pixels} pixels; at most {limits.pixels} are taken")
    return pixels

"""Images from files that anybody may have made: sizes are checked before anything is unpacked."""

import base64
import io
import math
import struct
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from .limits import Limits, Refused

MEMBERS = ("images.npy", "request.npy")


def encode_png(image: np.ndarray) -> bytes:
    """A PNG file of uint8 [H, W, 3]."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def decode_pngs(files: Any, limits: Limits) -> np.ndarray:
    """Images uint8 [B, H, W, 3] from a list of PNG files in base64.

    All headers are read, and checked, before the first pixel is decoded. Raises ``Refused`` with 400, 413 or 422.
    """
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise Refused(422, "images must be a list of base64 strings")
    check_images(len(files), 1, 1, limits)
    data = [_base64(i, file) for i, file in enumerate(files)]
    sizes = [_png_size(i, file) for i, file in enumerate(data)]
    if len(set(sizes)) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sorted(set(sizes))[:5])
        raise Refused(422, f"the images of a request must have one size, these have {found}")
    width, height = sizes[0]
    check_images(len(files), height, width, limits)
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


def unpack_npz(body: bytes, limits: Limits) -> tuple[np.ndarray, str]:
    """``images`` uint8 [B, H, W, 3] and the string ``request`` of an NPZ file.

    Sizes, types and shapes are read, and checked, before an array is made. Raises ``Refused`` with 400, 413 or 422.
    """
    # The end record of a zip file without a comment, not of the zip64 kind. ZipFile would read a directory of any size.
    signature, entries, directory = struct.unpack("<4s6xHI6x", body[-22:].rjust(22, b"\0"))
    if signature != b"PK\5\6" or body[-42:-38] == b"PK\6\7":
        raise Refused(400, "not an NPZ file as numpy.savez writes it, or the end of one is missing")
    if entries != len(MEMBERS) or directory > 4096:
        raise Refused(422, "the NPZ must hold the arrays images and request, and nothing else")
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as file:
            members = {entry.filename: entry for entry in file.infolist()}
            if set(members) != set(MEMBERS):
                raise Refused(422, f"the NPZ must hold the arrays images and request, got {sorted(members)}")
            if sum(entry.file_size for entry in members.values()) > limits.decoded:
                raise Refused(413, f"the NPZ unpacks to more than {limits.decoded} bytes")
            images, request = (_array(name, _unpacked(file, members[name])) for name in MEMBERS)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise Refused(422, f"images must be uint8 [B, H, W, 3], got {images.dtype} {list(images.shape)}")
        if request.dtype.kind != "U" or request.ndim:
            raise Refused(422, f"request must be one string, got {request.dtype} {list(request.shape)}")
        check_images(*images.shape[:3], limits)
        return images, str(request)
    except Refused:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        raise Refused(400, f"not a readable NPZ file: {error}") from None


def check_images(count: int, height: int, width: int, limits: Limits) -> None:
    """Refuse nothing with 422, and too much with 413."""
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

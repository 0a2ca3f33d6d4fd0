"""Requests that must be refused, each with its status."""

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from serving import batch

from reward_server import wire
from reward_server.limits import Limits

LIMITS = Limits(body=400_000, images=8, pixels=128 * 128, decoded=300_000, prompt=100, metadata=1000, values=5000)


@dataclass(frozen=True)
class BadBody:
    name: str
    status: int
    content_type: str
    body: bytes = field(repr=False)


def npz(images: Any = None, request: Any = None, **more: Any) -> bytes:
    file = io.BytesIO()
    images = batch().images if images is None else images
    request = json.dumps({"prompts": ["a"] * 2}) if request is None else request
    np.savez(file, images=images, request=request, **more)
    return file.getvalue()


def zipped(
    images: bytes,
    method: int = zipfile.ZIP_DEFLATED,
    request: bytes | None = None,
    more: dict[str, bytes] | None = None,
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("request.npy", npy(np.array('{"prompts": ["a", "a"]}')) if request is None else request)
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def lying_zip(size: int) -> bytes:
    """A member that unpacks to ``size`` bytes, but says 1000."""
    data = bytearray(zipped(npy_header((2, 8, 8, 3)) + bytes(size)))
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<I", 1000)
    return bytes(data)


def crowded_zip(entries: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(entries):
            archive.writestr(str(i), b"")
    return file.getvalue()


def png(width: int = 8, height: int = 8, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def huge_png(width: int, height: int) -> bytes:
    """A header that promises far more than the file holds."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_header(width, height)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def two_headers() -> bytes:
    """A small header, then a huge one."""
    return png()[:33] + png_header(8000, 8000) + png()[33:]


def text(images: list[Any], **fields: Any) -> bytes:
    encoded = [base64.b64encode(image).decode() if isinstance(image, bytes) else image for image in images]
    return json.dumps({"images": encoded, "prompts": ["a"] * len(images), **fields}).encode()


def bodies() -> Iterator[BadBody]:
    good, damaged = npz(), bytearray(npz())
    damaged[len(damaged) // 3] ^= 255
    yield from _bodies(wire.NPZ, _npz_cases(good, bytes(damaged)))
    yield from _bodies(wire.JSON, _json_cases())
    yield BadBody("json as npz", 400, wire.NPZ, text([png()]))
    yield BadBody("npz as json", 400, wire.JSON, good)
    for kind in ("", "text/plain", "application/octet-stream", "application/x-pickle", "application/jsonx", "\xe9"):
        yield BadBody(f"content type {kind!r}", 415, kind, good)


def _bodies(content_type: str, cases: dict[str, tuple[int, bytes | Callable[[], bytes]]]) -> Iterator[BadBody]:
    for name, (status, body) in cases.items():
        yield BadBody(name, status, content_type, body() if callable(body) else body)


def _npz_cases(good: bytes, damaged: bytes) -> dict[str, Any]:
    pickled = np.array([{"a": 1}, print], dtype=object)
    return {
        "nothing": (400, b""),
        "garbage": (400, bytes(range(256)) * 40),
        "truncated": (400, good[: len(good) // 2]),
        "without its end": (400, good[:-1]),
        "a flipped byte": (400, damaged),
        "pickled images": (422, npz(images=pickled)),
        "a pickled request": (422, npz(request=np.array({"prompts": []}, dtype=object))),
        "a bare pickle": (400, pickled.dumps()),
        "structured": (422, npz(images=np.zeros(2, [("a", "u1")]))),
        "floats": (422, npz(images=np.zeros((2, 8, 8, 3), np.float32))),
        "wide integers": (422, npz(images=np.zeros((2, 8, 8, 3), np.uint64))),
        "channels first": (422, npz(images=np.zeros((2, 3, 8, 8), np.uint8))),
        "one image without a batch": (422, npz(images=np.zeros((8, 8, 3), np.uint8))),
        "no images": (422, npz(images=np.zeros((0, 8, 8, 3), np.uint8), request='{"prompts": []}')),
        "no pixels": (422, npz(images=np.zeros((2, 0, 8, 3), np.uint8))),
        "fewer prompts": (422, npz(request='{"prompts": ["a"]}')),
        "fewer metadata": (422, npz(request='{"prompts": ["a", "a"], "metadata": [{}]}')),
        "a further array": (422, npz(more=np.zeros(1))),
        "another name": (422, zipped(npy(np.zeros(1)), more={"images2.npy": b""})),
        "many entries": (422, lambda: crowded_zip(2000)),
        "characters beyond Unicode": (400, zipped(npy(batch().images), request=npy_header((), "<U1") + b"\xff" * 4)),
        "a surrogate in NPZ": (422, zipped(npy(batch().images), request=npy_header((), "<U1") + b"\0\xd8\0\0")),
        "two requests": (422, npz(request=["{}", "{}"])),
        "a request that is not JSON": (400, npz(request="{")),
        "a request with NaN": (400, npz(request='{"prompts": ["a", "a"], "metadata": [{"x": NaN}, {}]}')),
        "too many images": (
            413,
            npz(images=np.zeros((9, 8, 8, 3), np.uint8), request=json.dumps({"prompts": ["a"] * 9})),
        ),
        "too many pixels": (413, npz(images=np.zeros((2, 130, 130, 3), np.uint8))),
        "a zip bomb": (413, lambda: zipped(npy(np.zeros((2, 4000, 4000, 3), np.uint8)))),
        "a zip bomb that lies": (400, lambda: lying_zip(100_000_000)),
        "bzip2": (422, lambda: zipped(npy(np.zeros((2, 8, 8, 3), np.uint8)), zipfile.ZIP_BZIP2)),
        "a header beyond its data": (400, zipped(npy_header((2, 10**6, 10**6, 3)))),
        "a header of terabytes": (400, zipped(npy_header((10**6, 10**6, 10**6, 3)))),
        "a negative header": (400, zipped(npy_header((-2, -8, 8, 3)) + bytes(384))),
        "a header of brackets": (400, zipped(b"\x93NUMPY\1\0\xe8\3" + b"(" * 1000)),
        "a header of objects": (422, zipped(npy_header((2, 8, 8, 3), "|O") + bytes(400))),
        "another npy version": (400, zipped(b"\x93NUMPY\7\0" + bytes(400))),
    }


def _json_cases() -> dict[str, Any]:
    image = png()
    deep = {"a": 1}
    for _ in range(40):
        deep = {"a": deep}
    numbers = {name: text([image], metadata=[{"x": 12345}]).replace(b"12345", name.encode()) for name in _NUMBERS}
    return {
        "no JSON at all": (400, b""),
        "an open bracket": (400, b"{"),
        "bytes that are no text": (400, b"\xff\xfe\xfd" * 10),
        "a list": (422, b"[]"),
        "null": (422, b"null"),
        "without prompts": (422, b'{"images": []}'),
        "with another field": (422, text([image], prompt="a")),
        "images that are numbers": (422, text([1])),
        "images that are no list": (422, b'{"images": "aGFsbG8=", "prompts": ["a"]}'),
        "prompts that are numbers": (422, text([image], prompts=[1])),
        "prompts that are a string": (422, text([image], prompts="a")),
        "metadata that are strings": (422, text([image], metadata=["a"])),
        "metadata that are null": (422, text([image], metadata=None)),
        "two prompts, one image": (422, text([image], prompts=["a", "b"])),
        "no images in JSON": (422, text([])),
        "not base64": (400, text(["%%%"])),
        "base64 of nothing": (400, text([b""])),
        "a JPEG": (400, text([_jpeg()])),
        "a truncated image": (400, text([image[:50]])),
        "half an image": (400, text([_noise()[: len(_noise()) // 2]])),
        "a damaged image": (400, text([image.replace(b"IDAT", b"IDAX")])),
        "RGBA": (422, text([png(mode="RGBA")])),
        "a palette": (422, text([png(mode="P")])),
        "two sizes": (422, text([image, png(9, 8)])),
        "a huge header": (413, text([huge_png(100_000, 100_000)])),
        "the hugest header": (413, text([huge_png(2**31 - 1, 2**31 - 1)])),
        "a header of zero": (422, text([huge_png(0, 0)])),
        "a second, huge header": (400, text([two_headers()])),
        "nine images": (413, text([image] * 9)),
        "images that decode to too much": (413, text([png(128, 128)] * 8)),
        "a long prompt": (413, text([image], prompts=["a" * 101])),
        "a lone surrogate": (422, b'{"images": ["%s"], "prompts": ["\\ud800"]}' % base64.b64encode(image)),
        "a surrogate in metadata": (422, text([image], metadata=[{"x": "12345"}]).replace(b"12345", b"\\udfff")),
        "large metadata": (413, text([image], metadata=[{"x": "a" * 1000}])),
        "deep metadata": (422, text([image], metadata=[deep])),
        "deep JSON": (413, b"[" * 10_000),
        "deeper than Python": (422, b"[" * 4900),
        "many values": (413, b'{"images": [' + b"1," * 20_000 + b'1], "prompts": []}'),
        "a number of 5000 digits": (400, text([image], metadata=[{"x": 12345}]).replace(b"12345", b"1" * 5000)),
        **_picture_cases(image),
        **{f"metadata with {name}": (400, body) for name, body in numbers.items()},
    }


def _picture_cases(image: bytes) -> dict[str, Any]:
    def sent(value: Any, *pictures: Any) -> bytes:
        return text([image], metadata=[{"image": value}], pictures=[*pictures])

    small, large = data_url(png()), data_url(png(130, 130))
    return {
        "a path of the server": (422, sent("/etc/hostname")),
        "an address": (422, sent("http://127.0.0.1/image.png")),
        "a picture that is a number": (422, sent(0.5, small)),
        "a picture that is true": (422, sent(True, small, small)),
        "a picture that is not there": (422, sent(1, small)),
        "a negative index": (422, sent(-1, small)),
        "a mask that is a list": (422, text([image], metadata=[{"mask": [0]}], pictures=[small])),
        "pictures that are no list": (422, text([image], pictures=small)),
        "pictures that are numbers": (422, sent(0, 1)),
        "pictures that are paths": (422, sent(0, "/etc/hostname")),
        "a picture that is not base64": (400, sent(0, data_url(b"") + "%%%")),
        "a picture of nothing": (400, sent(data_url(b""))),
        "a picture that is a JPEG": (400, sent(0, data_url(_jpeg()))),
        "a large picture": (413, sent(0, large)),
        "a large picture that nobody reads": (413, text([image], pictures=[large])),
        "a huge picture": (413, sent(0, data_url(huge_png(9000, 9000)))),
        "the hugest picture": (400, sent(0, data_url(huge_png(100_000, 100_000)))),
        "a picture of two headers": (413, sent(0, data_url(two_headers()))),
        "pictures that decode to too much": (
            413,
            text([image], pictures=[data_url(png(128, 120 + i)) for i in range(8)]),
        ),
        "more pictures than samples have": (413, text([image], pictures=[small] * 17)),
    }


def data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e400")


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


def _noise() -> bytes:
    file = io.BytesIO()
    Image.fromarray(batch(1, 64).images[0]).save(file, "PNG")
    return file.getvalue()

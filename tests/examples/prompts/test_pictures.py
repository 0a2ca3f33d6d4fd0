"""Pictures that belong to prompts: how they are read, and how .jsonl files name them."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import PIL.PngImagePlugin
import pytest
import torch
from PIL import Image

from prompts.files import read_jsonl
from prompts.pictures import data_url, load_picture, picture_size, pil_picture, shown
from prompts.sources import SourceSettings, load_prompts


def saved(path: Path, mode: str = "RGB", **options: object) -> str:
    """A picture 5 wide and 3 high, red growing to the right and green downwards."""
    pixels = np.zeros((3, 5, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(5) * 50, np.arange(3)[:, None] * 100
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return str(path)


def test_a_picture_is_channels_rows_and_columns_in_the_unit_interval(tmp_path: Path) -> None:
    picture = load_picture(saved(tmp_path / "a.png"))
    assert (picture.shape, picture.dtype) == ((3, 3, 5), torch.float32)
    torch.testing.assert_close(picture[0, 1], torch.arange(5) * 50 / 255)
    torch.testing.assert_close(picture[1, :, 2], torch.arange(3) * 100 / 255)
    assert not picture[2].any()
    assert picture_size(str(tmp_path / "a.png")) == (5, 3) == pil_picture(str(tmp_path / "a.png")).size


def test_what_a_caller_writes_does_not_come_back(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    expected = load_picture(path).clone()
    load_picture(path).zero_()
    assert torch.equal(load_picture(path), expected)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.png", mode)
    with Image.open(path) as image:
        expected = np.array(image.convert("RGB"))
    assert load_picture(path).shape == (3, 3, 5)
    assert np.array_equal((load_picture(path) * 255).round().byte().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", exif=exif)
    picture = load_picture(path)
    assert picture_size(path) == (picture.shape[2], picture.shape[1])
    assert picture.shape[1:] == ((3, 5) if orientation <= 4 else (5, 3))
    if orientation == 6:
        # The camera was turned: its first row is the right column.
        torch.testing.assert_close(picture[0, :, -1], torch.arange(5) * 50 / 255)


def test_the_size_of_a_png_is_read_from_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png")

    def load(self: Image.Image) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", load)
    assert picture_size(path) == (5, 3)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bits_become_8(tmp_path: Path, kind: str) -> None:
    levels = np.array([[0, 257, 1000], [30_000, 65_278, 65_535]], np.uint16)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(levels).save(path)
    for grey in load_picture(str(path)) * 255:
        assert grey.round().int().tolist() == [[0, 1, 4], [117, 254, 255]]


def test_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 5), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="its pixels are floats of an unknown range, save it with 8 or 16 bits"):
        load_picture(str(tmp_path / "a.tiff"))


def test_behind_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = (load_picture(str(tmp_path / "a.png")) * 255).round().int()
    assert picture[:, 0].T.tolist() == [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    Image.fromarray(np.array([[0, 9]], np.uint8)).save(tmp_path / "grey.png", transparency=0)
    assert (load_picture(str(tmp_path / "grey.png"))[0] * 255).round().int().tolist() == [[255, 9]]


@pytest.mark.parametrize("kind", ["jpeg", "webp", "bmp"])
def test_data_urls_of_other_types_are_read(tmp_path: Path, kind: str) -> None:
    file = Path(saved(tmp_path / f"a.{kind}"))
    url = f"data:image/{kind};base64," + base64.b64encode(file.read_bytes()).decode()
    assert torch.equal(load_picture(url), load_picture(str(file)))
    assert picture_size(url) == (5, 3)
    assert data_url(url) == data_url(str(file))
    with Image.open(io.BytesIO(base64.b64decode(data_url(url).partition(",")[2]))) as image:
        assert image.format == "PNG"
    [prompt] = read_jsonl(lines(tmp_path, {"image": url}), "edits", quoted=False)
    assert prompt.metadata["image"] == url


def test_a_data_url_is_the_same_picture(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    url = data_url(path)
    assert url.startswith("data:image/png;base64,")
    assert data_url(url) == url
    assert torch.equal(load_picture(url), load_picture(path))
    assert picture_size(url) == (5, 3)
    assert shown(path) == path
    assert len(shown(url + "A" * 1000)) < 70


@pytest.mark.parametrize("value", ["gone.png", "text.png", "data:image/png;base64,AAAA", "data:image/png;base64,A"])
def test_what_is_no_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    for read in (load_picture, pil_picture, picture_size):
        with pytest.raises(ValueError, match=f"{value} cannot be read as a picture .* give the path of a PNG or JPEG"):
            read(value)


def test_a_long_url_is_cut_short_in_messages() -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_picture("data:image/png;base64," + "A" * 5000)
    assert len(str(caught.value)) < 400


def lines(folder: Path, *facts: dict) -> Path:
    path = folder / "edits.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"make it blue {i}", **each}) for i, each in enumerate(facts)))
    return path


def test_pictures_of_a_file_are_found_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "side").mkdir(parents=True)
    image, mask = saved(tmp_path / "in" / "side" / "a.png"), saved(tmp_path / "mask.png")
    url = data_url(image)
    path = lines(
        tmp_path / "in",
        {"image": "side/a.png", "mask": "../mask.png", "note": "side/a.png"},
        {"image": image, "mask": url},
        {},
        {"image": None, "mask": None},
    )
    monkeypatch.chdir(tmp_path)
    first, second, third, fourth = read_jsonl(Path("in/edits.jsonl"), "edits", quoted=False)
    assert first.metadata == {"image": image, "mask": mask, "note": "side/a.png"}
    assert second.metadata == {"image": image, "mask": url}
    assert third.metadata == fourth.metadata == {}
    held_out = load_prompts("edits", SourceSettings(str(path)), True)
    assert held_out[0].metadata["image"] == image


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"image": "gone.png"}, "line 2: there is no picture .*gone.png: paths are relative to the folder"),
        ({"mask": "."}, "line 2: there is no picture"),
        ({"image": 3}, "line 2: a picture is the path of a file, got 3"),
        (
            {"image": "data:text/plain;base64," + "A" * 5000},
            r"line 2: .*a data URL of a picture is written data:image/\.\.\.",
        ),
        ({"image": "DATA:image/svg+xml,<svg/>"}, r"line 2: .*a data URL of a picture is written data:image/"),
        ({"image": "A" * 5000}, r"line 2: AAA.*\.\.\. is no picture \(File name too long\): give the path of a file"),
        ({"image": "a\0.png"}, "line 2: .*no picture"),
        ({"mask": ""}, "line 2: a picture is the path of a file, got ''"),
    ],
)
def test_pictures_that_are_not_there_are_refused_with_their_line(tmp_path: Path, facts: dict, message: str) -> None:
    saved(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message) as caught:
        read_jsonl(lines(tmp_path, {"image": "a.png"}, facts), "edits", quoted=False)
    assert len(str(caught.value)) < 1000

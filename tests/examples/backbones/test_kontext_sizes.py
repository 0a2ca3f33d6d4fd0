"""Which size a source image gives to its edit, and which sources are refused."""

from pathlib import Path

import pytest
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from hypothesis import given
from hypothesis import strategies as st
from kontext_cases import load, picture
from PIL import Image

from backbones.flux_kontext import FluxKontextBackbone
from backbones.flux_sizes import nearest, offered
from backbones.flux_tokens import positions
from prompts.pictures import data_url
from prompts.prompt import Prompt

SIDES = st.integers(16, 3000)


@pytest.fixture(scope="module")
def backbone(tiny_kontext: Path) -> FluxKontextBackbone:
    return load(tiny_kontext)


def edit(path: str) -> Prompt:
    return Prompt("make it blue", "edits", {"image": path})


def test_at_1024_pixels_the_sizes_are_the_pipelines() -> None:
    assert offered(1024, 16) == sorted(PREFERRED_KONTEXT_RESOLUTIONS)


@given(SIDES, SIDES)
def test_the_nearest_size_is_the_one_that_the_pipeline_takes(width: int, height: int) -> None:
    sizes = offered(1024, 16)
    if max(width, height) > 3 * min(width, height):
        with pytest.raises(ValueError, match="one side may be 3 times the other at most, crop it"):
            nearest((width, height), sizes, 16)
        return
    # As FluxKontextPipeline.__call__ has it.
    ratio = (width // 16 * 16) / (height // 16 * 16)
    _, *expected = min((abs(ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    assert nearest((width, height), sizes, 16) == tuple(expected)


@pytest.mark.parametrize(("side", "step"), [(64, 16), (256, 16), (512, 16), (512, 8), (768, 16)])
def test_other_sides_have_sizes_of_about_as_many_pixels(side: int, step: int) -> None:
    sizes = offered(side, step)
    assert (side, side) in sizes
    assert len(set(sizes)) == len(sizes) <= len(PREFERRED_KONTEXT_RESOLUTIONS)
    assert all(width % step == height % step == 0 for width, height in sizes)
    assert {(height, width) for width, height in sizes} == set(sizes)
    most = 0.035 if side >= 512 else 0.13
    assert all(abs(width * height / side**2 - 1) <= most for width, height in sizes)


@pytest.mark.parametrize(
    ("size", "shape"), [((64, 64), (8, 8)), ((300, 301), (8, 8)), ((200, 100), (6, 12)), ((70, 110), (10, 6))]
)
def test_the_source_decides_the_shape(
    backbone: FluxKontextBackbone, tmp_path: Path, size: tuple[int, int], shape: tuple[int, int]
) -> None:
    prompt = edit(picture(tmp_path, *size))
    assert backbone.latent_shape_of(prompt) == (16, *shape)
    assert backbone.encode([prompt])["source"].shape == (1, 16, *shape)
    assert positions(backbone.encode([prompt])["source"]).shape == (shape[0] * shape[1] // 4, 3)


def test_what_a_camera_noted_about_a_turn_counts(backbone: FluxKontextBackbone, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(picture(tmp_path, 128, 64)) as image:
        image.save(tmp_path / "turned.jpg", exif=exif)
    assert backbone.latent_shape_of(edit(str(tmp_path / "turned.jpg"))) == (16, 12, 6)


def test_a_data_url_serves_as_a_path_does(backbone: FluxKontextBackbone, tmp_path: Path) -> None:
    path = picture(tmp_path, 100, 60)
    found, expected = backbone.encode([edit(data_url(path))]), backbone.encode([edit(path)])
    assert (found["source"] == expected["source"]).all()


@pytest.mark.parametrize(
    ("size", "message"),
    [((15, 40), "15 x 40 pixels are too few: both sides must be at least 16"), ((200, 60), "200 x 60 .* crop it")],
)
def test_sources_that_cannot_be_served_are_refused_by_name(
    backbone: FluxKontextBackbone, tmp_path: Path, size: tuple[int, int], message: str
) -> None:
    path = picture(tmp_path, *size)
    with pytest.raises(ValueError, match=f"the source image of 'make it blue', {path}: {message}"):
        backbone.latent_shape_of(edit(path))


@pytest.mark.parametrize("metadata", [{}, {"image": None}, {"image": 3}])
def test_a_prompt_without_a_source_is_refused(backbone: FluxKontextBackbone, metadata: dict) -> None:
    with pytest.raises(ValueError, match=r"'a red fox' has no source image.*jsonl"):
        backbone.latent_shape_of(Prompt("a red fox", metadata=metadata))
    with pytest.raises(ValueError, match="has no source image"):
        backbone.encode([Prompt("a red fox", metadata=metadata)])


def test_a_source_that_is_no_picture_is_refused(backbone: FluxKontextBackbone, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "gone.png"):
        with pytest.raises(ValueError, match=f"'make it blue', .*{name} cannot be read as a picture"):
            backbone.latent_shape_of(edit(str(tmp_path / name)))


def test_prompts_of_different_shapes_are_not_encoded_together(backbone: FluxKontextBackbone, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one latent shape, these have \[\(16, 6, 12\), \(16, 8, 8\)\]"):
        backbone.encode([edit(picture(tmp_path)), edit(picture(tmp_path, 128, 64))])
    with pytest.raises(ValueError, match="no prompts"):
        backbone.encode([])

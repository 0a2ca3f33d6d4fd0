"""The detector: raw outputs to objects, and a saved Mask2Former from the same call as the hub's."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_detectors import save_mask2former

from rewards.geneval.classes import CLASSES
from rewards.geneval.detector import Detector, instances
from rewards.geneval.objects import Detection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mask2former(tmp_path_factory.mktemp("mask2former"))


def picture(side: int, seed: int = 0) -> Image.Image:
    tiles = torch.randint(0, 256, (6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(tiles.numpy()).resize((side, side), Image.Resampling.NEAREST)


def logits_of(*chosen: dict[str, float]) -> torch.Tensor:
    """Class logits [Q, 81] with the given probabilities per query; the rest goes to "no object"."""
    probabilities = torch.full((len(chosen), 81), 1e-12)
    for row, classes in zip(probabilities, chosen, strict=True):
        for name, probability in classes.items():
            row[CLASSES.index(name)] = probability
        row[-1] = 1 - sum(classes.values())
    return probabilities.log()


def rectangle(top: int, bottom: int, left: int, right: int, inside: float = 40.0) -> torch.Tensor:
    mask = torch.full((8, 12), -40.0)
    mask[top:bottom, left:right] = inside
    return mask


def test_objects_have_the_box_of_their_pixels_and_the_product_of_both_probabilities() -> None:
    certain = torch.log(torch.tensor(0.8 / 0.2)).item()  # a logit of probability 0.8
    classes = logits_of({"dog": 0.5, "cat": 0.4}, {"toothbrush": 0.9}, {"bus": 0.2}, {"cup": 0.7}, {"car": 0.8})
    masks = torch.stack(
        [
            rectangle(2, 5, 3, 9),
            rectangle(0, 8, 11, 12, certain),
            rectangle(0, 8, 0, 12),  # its class is not probable enough
            rectangle(0, 0, 0, 0),  # no pixels
            rectangle(1, 2, 1, 2, torch.log(torch.tensor(3 / 7)).item() + 1e-3),  # 0.8 x 0.3: the logit is negative
        ]
    )
    found = instances(classes, masks, (8, 12), (8, 12), floor=0.3)
    expected = {
        "dog": (0.5, (3, 2, 9, 5)),
        "cat": (0.4, (3, 2, 9, 5)),
        "toothbrush": (0.9 * 0.8, (11, 0, 12, 8)),
    }
    assert {each.name: each.box for each in found} == {name: box for name, (_, box) in expected.items()}
    assert {each.name: each.score for each in found} == pytest.approx({n: s for n, (s, _) in expected.items()})
    dog = next(each for each in found if each.name == "dog")
    assert dog.mask is not None
    assert dog.mask.sum() == 3 * 6


def test_the_floor_is_not_reached_by_the_mask_alone() -> None:
    classes, masks = logits_of({"dog": 0.5}), rectangle(2, 5, 3, 9, torch.log(torch.tensor(1.5)).item())[None]
    assert len(instances(classes, masks, (8, 12), (8, 12), floor=0.29)) == 1  # 0.5 x 0.6
    assert not instances(classes, masks, (8, 12), (8, 12), floor=0.31)


def test_boxes_are_in_pixels_of_the_image() -> None:
    found = instances(logits_of({"dog": 0.9}), rectangle(2, 4, 3, 9)[None], (32, 48), (64, 96), floor=0.3)
    assert found[0].box == (24, 16, 72, 32), "8 times the pixels of the mask, whose edges are symmetric"


def independent(detector: Detector, image: Image.Image) -> list[tuple[str, float, tuple[int, ...], torch.Tensor]]:
    """All objects above the floor by loops over queries and classes, from the raw outputs of model and processor."""
    inputs = detector.processor(images=[image], size=detector.size, return_tensors="pt")
    with torch.no_grad():
        outputs = detector.model(**inputs)
    masks = outputs.masks_queries_logits
    masks = torch.nn.functional.interpolate(masks, size=inputs["pixel_values"].shape[-2:], mode="bilinear")
    masks = torch.nn.functional.interpolate(masks, size=image.size[::-1], mode="bilinear")[0]
    found = []
    for logits, mask in zip(outputs.class_queries_logits[0], masks, strict=True):
        inside = mask > 0
        if not inside.any():
            continue
        quality = torch.sigmoid(mask[inside]).mean().item()
        rows, columns = torch.where(inside)
        box = (columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1)
        probabilities = logits.exp() / logits.exp().sum()
        for label, name in enumerate(CLASSES):
            if probabilities[label].item() * quality > detector.floor:
                found.append((name, probabilities[label].item() * quality, box, inside))
    return found


def same(found: list[Detection], expected: list[tuple[str, float, tuple[int, ...], torch.Tensor]]) -> None:
    assert len(found) == len(expected) > 5
    found = sorted(found, key=lambda each: each.score)
    for each, (name, score, box, mask) in zip(found, sorted(expected, key=lambda each: each[1]), strict=True):
        assert (each.name, each.box) == (name, box)
        assert each.score == pytest.approx(score, rel=1e-4)
        assert each.mask is not None
        assert torch.equal(each.mask, mask)


def test_a_saved_model_finds_what_its_raw_outputs_say(folder: Path) -> None:
    detector = Detector(str(folder), short_side=64)
    images = [picture(48, seed) for seed in (0, 1)]
    for image, found in zip(images, detector(images), strict=True):
        same(found, independent(detector, image))


def test_at_384_pixels_it_agrees_with_the_post_processing_of_transformers(folder: Path) -> None:
    detector = Detector(str(folder), short_side=384, floor=0.4)
    image = picture(384)
    inputs = detector.processor(images=[image], size=detector.size, return_tensors="pt")
    with torch.no_grad():
        outputs = detector.model(**inputs)
    (result,) = detector.processor.post_process_instance_segmentation(
        outputs, threshold=0.4, target_sizes=[(384, 384)], return_binary_maps=True
    )
    expected = [
        (CLASSES[segment["label_id"]], segment["score"], mask.bool())
        for segment, mask in zip(result["segments_info"], result["segmentation"], strict=True)
    ]
    found = detector([image])[0]
    assert len(found) == len(expected) > 5
    pairs = zip(sorted(found, key=lambda each: each.score), sorted(expected, key=lambda each: each[1]), strict=True)
    for each, (name, score, mask) in pairs:
        assert each.name == name
        assert each.score == pytest.approx(score, abs=2e-6)
        assert each.mask is not None
        assert torch.equal(each.mask, mask)


@pytest.mark.parametrize(("short_side", "shape"), [(64, (64, 96)), (32, (32, 64))])
def test_images_are_resized_by_their_short_side(folder: Path, short_side: int, shape: tuple[int, int]) -> None:
    detector = Detector(str(folder), short_side=short_side)
    image = Image.new("RGB", (96, 64))
    pixels = detector.processor(images=[image], size=detector.size, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == shape, "to multiples of 32"
    assert Detector(str(folder)).size == {"shortest_edge": 800, "longest_edge": 1333}


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 7 classes, GenEval needs COCO's 80"):
        Detector(str(save_mask2former(tmp_path, labels=7)))

"""The judge of edits on a random LLaVA, against the model's own forward, one pair at a time."""

from pathlib import Path

import pytest
import tiny_clip
import torch
from pictures_on_disk import save
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from make_rewards import save_judge
from rewards.edit_judge import QUESTION, Judge
from rewards.pil_images import pil_images
from rewards.registry import RewardSettings, build

PROMPTS = ["make it blue", "a", "remove the cat on the left and {prompt}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_judge(tmp_path_factory.mktemp("judge")))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return (tiny_clip.images() * 255).round() / 255


def expected(folder: str, source: Image.Image, edit: Image.Image, question: str) -> float:
    """P(Yes) / (P(Yes) + P(No)) in fp64."""
    processor, model = AutoProcessor.from_pretrained(folder), LlavaForConditionalGeneration.from_pretrained(folder)
    text = f"USER: <image>\n<image>\n{question} ASSISTANT: "
    inputs = processor(text=text, images=[source, edit], return_tensors="pt").to(dtype=torch.float64)
    with torch.no_grad():
        likely = model.double().eval()(**inputs).logits[0, -1].softmax(-1)
    yes, no = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    return (likely[yes] / (likely[yes] + likely[no])).item()


@pytest.mark.parametrize("batch_size", [1, 16])
def test_it_is_the_models_share_of_yes(folder: str, images: Tensor, tmp_path: Path, batch_size: int) -> None:
    """In one batch the questions differ in length: they end together, and padding is not read."""
    metadata = [{"image": save(tmp_path / f"{i}.png", source)} for i, source in enumerate(images[3:])]
    reward = build("edit_judge", RewardSettings(options={"model": folder}, batch_size=batch_size))
    scores = reward(images[:3], PROMPTS, metadata)
    sources, edits = pil_images(images[3:]), pil_images(images[:3])
    for i, prompt in enumerate(PROMPTS):
        question = QUESTION.replace("{prompt}", prompt)
        assert scores[i].item() == pytest.approx(expected(folder, sources[i], edits[i], question), abs=1e-4)
    assert scores.std() > 1e-3


def test_source_and_edit_are_told_apart_and_the_question_is_an_option(
    folder: str, images: Tensor, tmp_path: Path
) -> None:
    metadata = [{"image": save(tmp_path / f"{i}.png", images[1 - i])} for i in range(2)]
    reward = build("edit_judge", RewardSettings(options={"model": folder, "question": "{prompt}?"}))
    scores = reward(images[:2], ["a", "a"], metadata)
    first, second = pil_images(images[:2])
    assert scores[0].item() == pytest.approx(expected(folder, second, first, "a?"), abs=1e-4)
    assert scores[0] != scores[1]


def test_without_a_source_it_does_not_apply(folder: str, images: Tensor, tmp_path: Path) -> None:
    path = save(tmp_path / "source.png", images[0])
    reward = build("edit_judge", RewardSettings(options={"model": folder}))
    assert reward(images[:2], ["a", "b"], [{}, {"image": path}]).isnan().tolist() == [True, False]
    assert reward(images[:1], ["a"], [{}]).isnan().all()
    with pytest.raises(ValueError, match="2 images, 1 prompts and 2 metadata"):
        reward(images[:2], ["a"], [{}, {}])


def test_a_question_must_hold_the_instruction() -> None:
    with pytest.raises(ValueError, match=r"question must contain \{prompt\}, got 'Is it good\?'"):
        build("edit_judge", RewardSettings(options={"question": "Is it good?"}))


def test_a_tokenizer_that_cannot_tell_yes_from_no_is_refused(folder: str) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer = AutoTokenizer.from_pretrained(folder)
    processor.tokenizer.encode = lambda word, add_special_tokens: [0]
    with pytest.raises(ValueError, match="no token that tells Yes from No"):
        Judge(None, processor, QUESTION)

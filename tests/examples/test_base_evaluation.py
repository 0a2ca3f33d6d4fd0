"""The pretrained model's evaluation in a run's folder: read if whole and of the same settings, else made again."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trainer_cases import small_config

import marble_opt
from prompts.prompt import Prompt
from trainer import base_evaluation
from trainer.base_evaluation import NAME, load, pretrained, save
from trainer.evaluation import Evaluation, held_out

SOURCES = {"general": [Prompt("a meadow")], "text": [Prompt("the word OPEN", "text", {"text": "OPEN"})]}
PROMPTS = held_out(SOURCES, 2)


def evaluation() -> Evaluation:
    config = small_config()
    scores = torch.rand(len(config.rewards), len(PROMPTS))
    scores[0, 1] = torch.nan
    return Evaluation(tuple(config.rewards), PROMPTS, scores, {0: torch.rand(3, 4, 4), 2: torch.rand(3, 4, 4)})


def same(a: Evaluation, b: Evaluation | None) -> bool:
    assert b is not None
    torch.testing.assert_close((a.scores, a.images), (b.scores, b.images), rtol=0, atol=0, equal_nan=True)
    return (a.names, a.prompts) == (b.names, b.prompts)


def test_what_is_kept_is_read_back_for_the_same_settings_only(tmp_path: Path) -> None:
    assert load(tmp_path, small_config(), PROMPTS) is None
    kept = evaluation()
    save(tmp_path, small_config(), kept)
    assert same(kept, load(tmp_path, small_config("evaluation.every=2", "evaluation.batch=1"), PROMPTS))
    for other in ("evaluation.shown=2", "evaluation.steps=3"):
        assert load(tmp_path, small_config(other), PROMPTS) is None
    assert load(tmp_path, small_config("rewards.clean=null"), PROMPTS) is None
    assert load(tmp_path, small_config(), [*PROMPTS[:3], Prompt("the word OPEN", "text", {"text": "SHUT"})]) is None
    assert load(tmp_path, small_config("evaluation.prompts=1"), held_out(SOURCES, 1)) is None


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_damaged_file_is_warned_about_and_no_older_one_is_taken(damage: str, tmp_path: Path) -> None:
    path = tmp_path / NAME
    for _ in range(2):
        save(tmp_path, small_config(), evaluation())
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        torch.save({"scores": torch.ones(1)}, path)
    with pytest.warns(UserWarning, match=r"is evaluated again: .*base\.pt"):
        assert load(tmp_path, small_config(), PROMPTS) is None


def test_ranks_evaluate_together_unless_all_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, made = evaluation(), evaluation()
    trainer = SimpleNamespace(config=small_config(), test_prompts=SOURCES, backbone=None, adapters=None, scorer=None)
    monkeypatch.setattr(base_evaluation, "evaluate", lambda *arguments: made)
    save(tmp_path, trainer.config, kept)
    assert same(kept, pretrained(trainer, tmp_path, True))
    assert pretrained(trainer, tmp_path, True, made) is made
    assert same(kept, load(tmp_path, trainer.config, PROMPTS)), "a resumed run keeps what it has"
    monkeypatch.setattr("trainer.base_evaluation.ranks.everyone", lambda found: [found, False])
    assert pretrained(trainer, tmp_path, True) is made
    assert same(made, load(tmp_path, trainer.config, PROMPTS))


def test_a_new_run_does_not_take_what_another_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = evaluation()
    monkeypatch.setattr(base_evaluation, "evaluate", lambda *arguments: made)
    trainer = SimpleNamespace(config=small_config(), test_prompts=SOURCES, backbone=None, adapters=None, scorer=None)
    save(tmp_path, trainer.config, evaluation())
    assert pretrained(trainer, tmp_path, False) is made
    assert same(made, load(tmp_path, trainer.config, PROMPTS))
    assert not (tmp_path / (NAME + marble_opt.checkpoint.PREVIOUS)).exists()

"""A run in its folder: what is refused before a model is loaded, what a new and a continued run write."""

import json
import sys
from pathlib import Path

import pytest
import torch
from trainer_cases import small_config

from trainer import base_evaluation, run
from trainer.run import load_checkpoint, train


def heldout_steps(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "heldout/clean" in row]


def test_the_pretrained_models_scores_are_made_and_logged_once_and_a_finished_runs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, evaluate, made = small_config("epochs=1", "rollout.prompts=1"), base_evaluation.evaluate, []
    monkeypatch.setattr(base_evaluation, "evaluate", lambda *given: made.append(given) or evaluate(*given))
    bases = []
    for resume in (False, True):
        finished = train(config, tmp_path, resume, "cpu")
        bases.append(finished.base)
        assert heldout_steps(tmp_path) == [0, 1]
    assert len(made) == 1
    assert bases[0].summary() == bases[1].summary()
    assert all(torch.equal(image, bases[1].images[place]) for place, image in bases[0].images.items())
    grid = (tmp_path / "grids" / "epoch-0000.png").read_bytes()
    assert [row["epoch"] for row in finished.evaluations] == [0, 1]
    train(small_config("epochs=2", "rollout.prompts=1", "evaluation.prompts=3"), tmp_path, True, "cpu")
    assert len(made) == 2, "of other prompts"
    assert heldout_steps(tmp_path) == [0, 1, 2]
    assert (tmp_path / "grids" / "epoch-0000.png").read_bytes() == grid


@pytest.mark.parametrize(
    ("option", "kind", "message"),
    [
        (
            "sources.text.path=nowhere",
            ValueError,
            r"there is no file or folder nowhere.*; to do without it, sources\.text=null",
        ),
        ("log.wandb=project", ImportError, "Weights & Biases is not installed"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_loaded(
    option: str, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(run, "load_backbone", loaded)
    monkeypatch.setattr(run, "Scorer", loaded)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(kind, match=message):
        train(small_config(option), tmp_path, False, "cpu")


def test_ranks_that_find_different_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.run.ranks.everyone", lambda value: [7, value])
    with pytest.raises(ValueError, match=r"different checkpoints .*after epochs \[7, None\]"):
        load_checkpoint(tmp_path)

"""The logs of a run: rows on the disk, resumed runs, trackers, ranks."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer import logs as logs_module
from trainer.logs import NAME, Logs

PICTURE = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


class FakeWandb:
    """Records what a run is told."""

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.logged: list[dict] = []
        self.finished = 0

    def init(self, **options: object) -> SimpleNamespace:
        self.inits.append(options)
        self.axes: list[tuple] = []
        return SimpleNamespace(
            log=self.logged.append,
            define_metric=lambda name, step_metric: self.axes.append((name, step_metric)),
            finish=lambda: setattr(self, "finished", self.finished + 1),
        )

    @staticmethod
    def Image(pixels: np.ndarray) -> tuple[str, tuple[int, ...]]:
        return "image", pixels.shape


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_rows_are_on_the_disk_at_once_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "run")
    logs.write(1, {"a": 0.5, "né": float("nan"), "c": -float("inf"), "d": torch.tensor(2), "e": np.float32(0.25)})
    assert rows(tmp_path / "run") == [{"step": 1, "a": 0.5, "né": None, "c": None, "d": 2.0, "e": 0.25}]
    logs.write(2, {})
    assert rows(tmp_path / "run")[1] == {"step": 2}
    logs.close()


@pytest.mark.parametrize(("resume_step", "kept"), [(None, [1, 2, 2, 3]), (3, [1, 2, 2, 3]), (2, [1, 2, 2]), (0, [])])
def test_a_resumed_run_drops_later_rows(resume_step: int | None, kept: list[int], tmp_path: Path) -> None:
    with Logs(tmp_path) as logs:
        for step in (1, 2, 2, 3):
            logs.write(step, {"a": step / 2})
    with Logs(tmp_path, resume_step=resume_step) as logs:
        logs.write(9, {"a": 1.0})
    assert [row["step"] for row in rows(tmp_path)] == [*kept, 9]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("resume_step", [None, 5])
def test_a_row_that_a_kill_cut_short_is_dropped(resume_step: int | None, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"step": 1, "a": 0.5}\n{"step": 2, "a"')
    with Logs(tmp_path, resume_step=resume_step) as logs:
        logs.write(2, {"a": 1.0})
    assert rows(tmp_path) == [{"step": 1, "a": 0.5}, {"step": 2, "a": 1.0}]


def test_a_kill_while_rows_are_dropped_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = '{"step": 1}\n{"step": 2}\n'
    (tmp_path / NAME).write_text(content)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        Logs(tmp_path, resume_step=1)
    assert (tmp_path / NAME).read_text() == content


@pytest.mark.parametrize("line", ["step 3", '{"a": 1}', "[1]"])
def test_a_line_of_somebody_else_is_refused_with_its_number(line: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 was not written by a run"):
        Logs(tmp_path, resume_step=1)


def test_tensorboard_gets_numbers_and_pictures_and_hides_what_is_repeated(tmp_path: Path) -> None:
    with Logs(tmp_path, tensorboard=True) as logs:
        for step in (1, 2, 3):
            logs.write(step, {"reward/ocr": float(step)})
        logs.image(3, "samples", PICTURE)
    with Logs(tmp_path, tensorboard=True, resume_step=1) as logs:
        logs.write(2, {"reward/ocr": 7.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/ocr")] == [(1, 1.0), (2, 7.0)]


def test_pictures_are_files_or_arrays(tmp_path: Path, wandb: FakeWandb) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "grid.png")
    with Logs(tmp_path, tensorboard=True, wandb="project") as logs:
        logs.image(4, "grid", tmp_path / "grid.png")
        logs.image(5, "grid", PICTURE)
        for wrong in (PICTURE[0], PICTURE.astype(float), PICTURE[..., :1]):
            with pytest.raises(ValueError, match=r"a picture must be a file or uint8 \[H, W, 3\]"):
                logs.image(5, "grid", wrong)
    assert wandb.logged == [{"grid": ("image", (24, 24, 3)), "step": step} for step in (4, 5)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(image.step, image.width) for image in events.Images("grid")] == [(4, 24), (5, 24)]


def test_a_resumed_run_continues_its_wandb_run(tmp_path: Path, wandb: FakeWandb) -> None:
    for resume_step in (None, 1):
        with Logs(tmp_path / "run", wandb="project", resume_step=resume_step) as logs:
            logs.write(2, {"a": 1.0})
    first, second = wandb.inits
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("project", "run", "allow")
    assert first["id"]
    assert wandb.axes == [("*", "step")]
    assert wandb.logged == [{"a": 1.0, "step": 2}] * 2
    assert wandb.finished == 2
    with Logs(tmp_path / "other", wandb="project"):
        assert wandb.inits[-1]["id"] != first["id"]


@pytest.mark.parametrize(
    ("module", "options", "command"),
    [
        ("torch.utils.tensorboard", {"tensorboard": True}, "pip install tensorboard"),
        ("wandb", {"wandb": "project"}, "pip install wandb"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_package_is_named_on_every_rank(
    module: str, options: dict, command: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=command):
        Logs(tmp_path, rank=rank, **options)
    Logs(tmp_path, rank=rank).close()


def test_other_ranks_write_nothing(tmp_path: Path, wandb: FakeWandb) -> None:
    with Logs(tmp_path / "run", tensorboard=True, wandb="project", rank=1, resume_step=3) as logs:
        logs.write(1, {"a": 1.0})
        logs.image(1, "a", PICTURE)
    logs.write(1, {"a": 1.0})
    assert not (tmp_path / "run").exists()
    assert not wandb.inits


def test_misuse_is_refused(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    with pytest.raises(ValueError, match="the row's own number"):
        logs.write(1, {"step": 1.0})
    logs.close()
    logs.close()
    for call in (lambda: logs.write(1, {}), lambda: logs.image(1, "a", PICTURE)):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert (tmp_path / logs_module.NAME).read_text() == ""

"""Checkpoint files: whole or refused, and never without a good one behind them."""

import io
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_opt import Marble, checkpoint, load_checkpoint, save_checkpoint
from toys import normal, parameters, quadratic_losses, same

NAMES = ("a", "b", "c")


def state(step: int) -> dict[str, Any]:
    """What a training loop saves."""
    params = parameters(seed=step)
    opt = Marble(torch.optim.AdamW(params, lr=0.1), NAMES)
    opt.backward(quadratic_losses(params, normal(3, 10), NAMES))
    opt.step()
    return {
        "step": step,
        "weights": [p.detach() for p in params],
        "optimizer": opt.state_dict(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }


def generations(path: Path) -> dict[str, Any]:
    return {file.name: load_checkpoint(file)["step"] for file in path.parent.iterdir() if file.suffix != ".damaged"}


def truncate(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "last.pt"


def test_what_was_saved_is_loaded(path: Path) -> None:
    saved = state(1)
    save_checkpoint(str(path), saved)
    loaded = load_checkpoint(str(path))
    assert loaded.keys() == saved.keys()
    assert loaded["python"] == saved["python"]
    assert same(loaded, saved)
    random.setstate(loaded["python"])
    torch.set_rng_state(loaded["torch"])


def test_the_last_two_are_kept_and_nothing_else(path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(path, state(step))
    assert generations(path) == {"last.pt": 3, "last.pt.previous": 2}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_replaced_by_the_one_before_it_with_a_warning(path: Path, share: float) -> None:
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    truncate(path, share)
    with pytest.warns(UserWarning, match=r"last\.pt is not a readable checkpoint .* continuing from the previous one"):
        assert load_checkpoint(path)["step"] == 1


def test_a_truncated_file_without_a_previous_one_is_refused(path: Path) -> None:
    save_checkpoint(path, state(1))
    truncate(path)
    with pytest.raises(ValueError, match="no previous one to fall back to: delete it to start afresh"):
        load_checkpoint(path)


def test_two_damaged_generations_are_refused(path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(path, state(step))
    truncate(path)
    truncate(path.with_name("last.pt.previous"))
    with pytest.raises(ValueError, match="the previous one cannot be loaded either"):
        load_checkpoint(path)


def test_every_flipped_bit_is_harmless_or_refused(path: Path) -> None:
    saved = {"weights": normal(30), "step": 1}
    save_checkpoint(path, saved)
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert same(load_checkpoint(path), saved)
        except checkpoint.UnreadableError:
            refused += 1
    assert refused > 300


def test_a_damaged_file_is_put_aside_and_the_good_one_before_it_stays(path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(path, state(step))
    truncate(path)
    damaged = path.read_bytes()
    save_checkpoint(path, state(3))
    assert generations(path) == {"last.pt": 3, "last.pt.previous": 1}
    assert path.with_name("last.pt.damaged").read_bytes() == damaged


def test_without_a_file_the_path_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*last\.pt"):
        load_checkpoint(path)


def test_between_the_two_renames_the_previous_one_is_loaded(path: Path) -> None:
    save_checkpoint(path, state(1))
    path.rename(path.with_name("last.pt.previous"))
    assert load_checkpoint(path)["step"] == 1


class Foreign:
    """Something that only an unsafe load would make."""


FOREIGN: dict[str, Any] = {
    "another trainer's": {"weights": torch.ones(1)},
    "another format": {"format": "other", "version": 1, "state": {}},
    "a bare tensor": torch.ones(2),
    "a pickled object": {"format": checkpoint.FORMAT, "version": 1, "state": Foreign()},
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_file_is_neither_loaded_nor_overwritten(path: Path, content: Any) -> None:
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="load another file"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="save to another path: this one is not overwritten"):
        save_checkpoint(path, state(3))
    assert path.read_bytes() == before
    assert not path.with_name("last.pt.tmp").exists()


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    path.parent.mkdir()
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION + 1, "state": {}}, path)
    with pytest.raises(ValueError, match=r"version 2 of the format, this marble_opt reads up to 1: upgrade"):
        load_checkpoint(path)


def test_a_state_that_could_not_be_loaded_is_refused_when_it_is_saved(path: Path) -> None:
    save_checkpoint(path, state(1))
    with pytest.raises(ValueError, match="cannot be loaded with weights_only=True"):
        save_checkpoint(path, {"step": 2, "object": Foreign()})
    assert generations(path) == {"last.pt": 1}


def test_a_full_disk_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save_checkpoint(path, state(step))

    def full(content: Any, file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, state(3))
    assert generations(path) == {"last.pt": 2, "last.pt.previous": 1}


def test_a_disk_that_loses_bytes_is_noticed_before_anything_is_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(path, state(1))

    def lossy(content: Any, file: io.BufferedWriter) -> None:
        buffer = io.BytesIO()
        original(content, buffer)
        file.write(buffer.getvalue()[:-100])

    original = torch.save
    monkeypatch.setattr(torch, "save", lossy)
    with pytest.raises(OSError, match=r"cannot be read back .* check the disk"):
        save_checkpoint(path, state(2))
    assert generations(path) == {"last.pt": 1}


def test_checksums_are_written_whatever_torch_is_set_to(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(path, state(1))
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint(path)["step"] == 1

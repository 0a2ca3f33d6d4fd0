"""Checkpoint files that survive a kill at any moment: written beside the last good one, verified, then renamed."""

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = "marble_opt.checkpoint"
VERSION = 1
PREVIOUS, TEMPORARY, DAMAGED = ".previous", ".tmp", ".damaged"


class UnreadableError(ValueError):
    """The file is truncated or corrupt: what it holds is not what was written."""


def save_checkpoint(path: str | os.PathLike[str], state: Any) -> None:
    """Write ``state`` to ``path`` so that a kill or a power cut at any moment leaves a readable checkpoint behind.

    Written to ``path + ".tmp"``, flushed to disk and read back (checksums and ``weights_only=True``); only then does
    the last checkpoint become ``path + ".previous"`` and the new one ``path``. The disk holds up to three generations
    for a moment and two afterwards. An unreadable file at ``path`` does not become the previous one: it is put aside as
    ``path + ".damaged"``. Beside the write this costs two reads of a file of that size, for its checksums.

    Under torchrun rank 0 alone writes, ``if rank == 0: save_checkpoint(...)``, to a folder that all ranks see, and all
    ranks load. Two processes must not write to one path at once.

    Args:
        path: the file; missing folders are made.
        state: tensors, numbers, strings, and lists, tuples and dictionaries of these, such as
            ``{"model": model.state_dict(), "optimizer": opt.state_dict(), "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(), "step": step}``.

    Raises:
        ValueError: ``state`` holds something that ``torch.load(weights_only=True)`` refuses, or ``path`` holds a
            file of somebody else. What was there stays.
        OSError: the disk is full, or the folder cannot be written to. What was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _put_aside(path)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        _write(temporary, {"format": FORMAT, "version": VERSION, "state": state})
        try:
            _read(temporary, mmap=True)
        except UnreadableError as error:
            raise OSError(f"{temporary} cannot be read back ({error}): check the disk; {path} is as before") from error
        except ValueError as error:
            raise ValueError(
                f"the state cannot be loaded with weights_only=True: save tensors, numbers, strings, and lists, tuples "
                f"and dictionaries of these ({error})"
            ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if aside is not None:
        # A kill between the two renames leaves no file at `path`: load_checkpoint then takes the previous one.
        os.replace(path, aside)
    os.replace(temporary, path)
    _sync_folder(path.parent)


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """The state that :func:`save_checkpoint` wrote, with all tensors on the CPU.

    If the file is truncated or corrupt the one before it is loaded, with a warning that says so. Nothing but tensors
    and plain values is ever unpickled. Under torchrun every rank calls this before its first step.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the file is not a checkpoint of ours or of a newer version, or no generation is readable.
    """
    path = Path(path)
    previous = path.with_name(path.name + PREVIOUS)
    if not path.exists() and not previous.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}: start without one, or correct the path")
    try:
        # Without asking whether it exists: a writer may be between its two renames.
        return _read(path)["state"]
    except FileNotFoundError:
        return _read(previous)["state"]
    except UnreadableError as error:
        reason = error
    try:
        state = _read(previous)["state"]
    except FileNotFoundError:
        advice = "there is no previous one to fall back to: delete it to start afresh"
        raise UnreadableError(f"{reason}, and {advice}") from reason
    except ValueError as error:
        raise UnreadableError(f"{reason}; the previous one cannot be loaded either: {error}. Delete both") from error
    warnings.warn(f"{reason}: continuing from the previous one, {previous}", stacklevel=2)
    return state


def _write(path: Path, content: dict[str, Any]) -> None:
    # Without checksums, a global setting of torch, damage inside a tensor could not be told from its values.
    checksums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    finally:
        torch.serialization.set_crc32_options(checksums)


def _read(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a file, refused with ``ValueError`` unless it is whole and of this format."""
    _verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # The checksums are right, so this is what somebody wrote.
        raise ValueError(
            f"{path} holds more than tensors and plain values ({error}): load another file, or move it away"
        ) from error
    except RuntimeError as error:
        raise UnreadableError(f"{path} is not a readable checkpoint ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by marble_opt.save_checkpoint: load another file, or move it away")
    if content["version"] > VERSION:
        raise ValueError(
            f"{path} has version {content['version']} of the format, this marble_opt reads up to {VERSION}: upgrade it"
        )
    return content


def _verify(path: Path) -> None:
    """Compare all checksums, which torch.load itself skips."""
    with open(path, "rb") as raw:
        try:
            with zipfile.ZipFile(raw) as file:
                damaged = file.testzip()
        except Exception as error:
            # zipfile has no common error for damage: bad offsets, names and methods raise five others, OSError too.
            raise UnreadableError(f"{path} is not a readable checkpoint ({error or type(error).__name__})") from error
    if damaged is not None:
        raise UnreadableError(f"{path} is not a readable checkpoint (damaged at {damaged})")


def _put_aside(path: Path) -> Path | None:
    """Where the file at ``path`` is to go: ``None`` if there is none, ``ValueError`` if it is somebody else's."""
    try:
        _read(path, mmap=True)
    except FileNotFoundError:
        return None
    except UnreadableError:
        return path.with_name(path.name + DAMAGED)
    except ValueError as error:
        raise ValueError(f"{error}, or save to another path: this one is not overwritten") from error
    return path.with_name(path.name + PREVIOUS)


def _sync_folder(folder: Path) -> None:
    """Make renames survive a power cut."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The cache of prompt embeddings: what is encoded, kept, shared and repaired."""

import multiprocessing
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backbones.prompt_cache import PromptCache


def vectors(texts: list[str]) -> dict[str, torch.Tensor]:
    """A function of the text alone."""
    rows = [torch.randn(4, 8, generator=torch.Generator().manual_seed(hash_of(text))) for text in texts]
    return {"sequence": torch.stack(rows).bfloat16(), "pooled": torch.stack(rows)[:, 0]}


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(text)) % 2**31


ENTRY_BYTES = 4 * 8 * 2 + 8 * 4


@pytest.fixture
def counting() -> tuple[Callable, list[list[str]]]:
    calls: list[list[str]] = []

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        calls.append(texts)
        return vectors(texts)

    return encode, calls


def equal(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def test_hits_equal_misses_bit_for_bit_in_the_order_asked_for(counting: tuple) -> None:
    encode, calls = counting
    cache = PromptCache(encode, "model", batch=2)
    texts = ["b", "a", "b", "c", "a"]
    miss = cache(texts)
    assert equal(miss, vectors(texts))
    assert calls == [["b", "a"], ["c", "c"]], "each text once, in whole batches"
    assert equal(cache(texts), miss)
    assert equal(cache(texts[::-1]), vectors(texts[::-1]))
    assert len(calls) == 2
    assert equal(cache(["d", "a"]), vectors(["d", "a"]))
    assert calls[2:] == [["d", "d"]], "only what is missing"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_second_cache_reads_what_the_first_wrote(counting: tuple, tmp_path: Path, batch: int) -> None:
    encode, calls = counting
    first = PromptCache(encode, "model", tmp_path, batch)(["a", "b", "ü\n"])
    assert equal(PromptCache(lambda texts: 1 / 0, "model", tmp_path)(["a", "b", "ü\n"]), first)
    made = len(calls)
    PromptCache(encode, "another model", tmp_path, batch)(["a", "b", "ü\n"])
    assert len(calls) == 2 * made, "another fingerprint shares nothing"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_file_is_encoded_again_with_a_warning(
    counting: tuple, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    encode, calls = counting
    cache = PromptCache(encode, "model", tmp_path)
    expected = cache(["a", "b"])
    damage(cache.path("a"))
    with pytest.warns(UserWarning, match=r"is damaged .*encoded again"):
        assert equal(PromptCache(encode, "model", tmp_path, batch=1)(["a", "b"]), expected)
    assert calls[1:] == [["a"]]
    assert equal(PromptCache(lambda texts: 1 / 0, "model", tmp_path)(["a", "b"]), expected), "the file was repaired"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_overflowed_is_not_kept(tmp_path: Path, value: float) -> None:
    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        rows = torch.tensor([[value if text == "b" else 1.0] * 3 for text in texts]).half()
        return {"mask": torch.ones(len(texts), 3, dtype=torch.long), "sequence": rows}

    cache = PromptCache(encode, "model", tmp_path)
    with pytest.raises(ValueError, match=r"made 'sequence' of the prompt 'b' that is not finite: .*precision=bf16"):
        cache(["a", "b"])
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not cache._memory
    assert cache(["a"])["sequence"].isfinite().all()


def test_memory_is_bounded_and_the_least_recently_used_go_first(counting: tuple) -> None:
    encode, calls = counting
    cache = PromptCache(encode, "model", batch=1, max_bytes=3 * ENTRY_BYTES)
    cache(["a", "b", "c"])
    cache(["a"])
    cache(["d"])
    assert list(cache._memory) == ["c", "a", "d"]
    assert len(calls) == 4
    cache(["a", "c", "d"])
    assert len(calls) == 4
    cache(["b"])
    assert len(calls) == 5
    everything = cache([f"{i}" for i in range(50)])
    assert equal(everything, vectors([f"{i}" for i in range(50)])), "a request may be larger than the bound"
    assert cache._bytes == 3 * ENTRY_BYTES == sum(t.nbytes for e in cache._memory.values() for t in e.values())


def test_an_entry_does_not_keep_its_batch_alive(counting: tuple) -> None:
    cache = PromptCache(counting[0], "model", batch=16)
    cache(["a"])
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in cache._memory["a"].values())


def test_the_encoders_are_made_ready_once_and_only_if_something_is_missing(counting: tuple) -> None:
    entered: list[str] = []

    @contextmanager
    def ready():
        entered.append("in")
        yield
        entered.append("out")

    cache = PromptCache(counting[0], "model", batch=1, ready=ready)
    cache(["a", "b", "c"])
    cache(["c", "a"])
    assert entered == ["in", "out"]


def test_bad_calls_are_refused(counting: tuple) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        PromptCache(counting[0], "model")([])
    with pytest.raises(ValueError, match="batch must be at least 1"):
        PromptCache(counting[0], "model", batch=0)


def _fill(folder: str, names: list[str], failures) -> None:
    torch.set_num_threads(1)
    for turn in range(5):
        cache = PromptCache(vectors, f"model {turn}", folder, batch=2)
        if not equal(cache(names), vectors(names)):
            failures.put(names)


def test_two_processes_may_write_the_same_files(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    names = [f"prompt {i}" for i in range(20)]
    writers = [context.Process(target=_fill, args=(str(tmp_path), order, failures)) for order in (names, names[::-1])]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert failures.empty()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 100
    assert all(path.suffix == ".safetensors" and not path.name.startswith(".") for path in files), "no leftovers"
    assert equal(PromptCache(lambda texts: 1 / 0, "model 4", tmp_path)(names), vectors(names))


def test_a_file_may_be_written_by_another_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = iter([PromptCache(vectors, "model", tmp_path)])

    def save(entry: dict, path: Path, metadata: dict) -> None:
        save_file(entry, path, metadata=metadata)
        for other in others:
            other(["a"])

    monkeypatch.setattr("backbones.prompt_cache.save_file", save)
    assert equal(PromptCache(vectors, "model", tmp_path)(["a"]), vectors(["a"]))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert equal(PromptCache(lambda texts: 1 / 0, "model", tmp_path)(["a"]), vectors(["a"]))


def test_a_failed_write_leaves_nothing_behind(counting: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(entry: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("backbones.prompt_cache.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        PromptCache(counting[0], "model", tmp_path)(["a"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

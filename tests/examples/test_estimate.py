"""The estimate of a run: published counts, the passes that Marble really runs, the sizes of the tiny model."""

import pytest
import torch
from torch import nn

import marble_opt
from backbones.settings import ModelSettings
from backbones.tiny import TinyBackbone
from prompts.prompt import Prompt
from trainer.adapters import Adapters
from trainer.estimate import KEPT, ModelSizes, RunCounts, duration, estimate
from trainer.model_sizes import seconds_per_forward, sizes_of

RECIPE = {"samples": 72, "sampler_steps": 25, "timesteps": 24, "micro_batch": 9}
SIZES = ModelSizes(
    frozen_bytes=1000, lora_parameters=10, adapters=3, tokens=7, width=11, layers=4, value_bytes=2, prompt_bytes=5
)


def forwards(**options: object) -> float:
    return estimate(RunCounts(**RECIPE, **options), SIZES).forwards


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"form": "sum"}, 123),
        ({"form": "loop", "rewards": 5}, 255),
        ({"anchor": "shared"}, 150),
        ({"anchor": "shared", "probe": 1 / 8}, 120),
    ],
)
def test_published_counts(options: dict, published: int) -> None:
    assert round(forwards(**options)) == published


def test_each_option_adds_its_own_part() -> None:
    assert forwards(form="sum", guidance=True) == pytest.approx(forwards(form="sum") + 25)
    assert forwards(form="sum", references=2) == pytest.approx(forwards(form="sum") + 24)
    assert forwards(form="sum", kl=False) == pytest.approx(forwards(form="sum") - 24)
    assert forwards(anchor="none", kl=False) == pytest.approx(forwards(form="sum", kl=False))
    assert forwards(anchor="per_reward") == pytest.approx(forwards(anchor="shared") + 24 * 1.1)
    assert forwards(anchor="shared", checkpointing=True) == pytest.approx(forwards(anchor="shared") + 48)
    assert forwards(refresh_every=10) == pytest.approx(forwards(form="sum") + 24 * 1.1 * 2 / 10)
    assert forwards(anchor="shared", shared_every=8) == pytest.approx(forwards(form="sum") + 3 * (1.1 + 1) - 24)


def passes_of_marble(options: dict, anchor: str, kl: bool, steps: int, micro_steps: int = 8) -> tuple[float, float]:
    """Backward passes and reference forwards per micro-step, counted in a real run."""
    model = nn.Linear(4, 4)
    names = ["a", "b", "c"]
    optimizer = marble_opt.Marble(torch.optim.SGD(model.parameters(), lr=1e-3), names, **options)
    optimizer.watch(model, verify_every=None)
    passes = references = 0
    for _ in range(steps):
        for _ in range(micro_steps):
            x_0, noise, t = torch.randn(6, 4), torch.randn(6, 4), torch.rand(6)
            x_t = (1 - t[:, None]) * x_0 + t[:, None] * noise
            prediction = model(x_t)
            old = prediction.detach() + 0.1
            loss = marble_opt.losses.diffusion_nft(
                prediction, old, x_t, x_0, t, torch.randn(3, 6), beta=0.1, anchor=anchor
            )
            wants = kl and optimizer.wants_shared
            references += wants
            parts = [prediction.square().mean()] * wants
            # Under "observe" the weighted sum is what trains: a shared term beside the KL.
            parts += [loss.losses().sum()] * (options.get("balancer") == "observe")
            optimizer.backward(loss, shared=sum(parts) if parts else None)
        optimizer.step()
        passes += optimizer.report.passes
        optimizer.zero_grad()
    return passes / (steps * micro_steps), references / (steps * micro_steps)


@pytest.mark.parametrize("anchor", ["per_reward", "shared"])
@pytest.mark.parametrize("kl", [True, False])
@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, {}),
        ({"refresh_every": 4}, {"refresh_every": 4}),
        ({"shared_every": 8}, {"shared_every": 8}),
        ({"probe": 1 / 4, "micro_steps": 8}, {"probe": 1 / 4}),
        ({"route": "loop"}, {"form": "loop"}),
        ({"balancer": "observe"}, {"form": "observe"}),
        ({"balancer": "observe", "refresh_every": 4}, {"form": "observe", "refresh_every": 4}),
    ],
)
def test_passes_are_those_that_marble_runs(options: dict, counts: dict, anchor: str, kl: bool) -> None:
    passes, references = passes_of_marble(options, anchor, kl, steps=4)
    expected = estimate(
        RunCounts(samples=6, sampler_steps=1, timesteps=8, micro_batch=6, rewards=3, anchor=anchor, kl=kl, **counts),
        SIZES,
    )
    assert (expected.passes / 8, expected.reference / 8) == (passes, references)


def test_memory_is_counted_from_the_sizes() -> None:
    parts = {name: size for name, size, _ in estimate(RunCounts(**RECIPE, anchor="shared"), SIZES).memory}
    assert parts == {
        "frozen weights": 1000,
        "3 LoRA adapters": 120,
        "gradient, 2 moments": 120,
        "5 gradient rows": 200,
        "rows of the pass under way": 200,
        "activations": 9 * 7 * 11 * 2 * KEPT * 4,
    }


@pytest.mark.parametrize(
    ("options", "rows", "made"),
    [
        ({"form": "sum"}, 0, 0),
        ({"form": "observe"}, 5, 5),
        ({"form": "loop"}, 5, 1),
        ({"probe": 1 / 192}, 5, 0),
        ({"probe": 1 / 8}, 5, 5),
    ],
)
def test_rows_take_memory_where_they_are_made(options: dict, rows: int, made: int) -> None:
    memory = estimate(RunCounts(**RECIPE, **options), SIZES).memory
    assert [size for name, size, _ in memory if "rows" in name] == [rows * 40, made * 40]


def test_checkpointing_takes_less_memory_for_more_time() -> None:
    plain, less = (estimate(RunCounts(**RECIPE, checkpointing=on), SIZES) for on in (False, True))
    assert less.bytes < plain.bytes
    assert less.forwards > plain.forwards


def test_the_table_says_what_is_measured_and_what_is_rough() -> None:
    result = estimate(RunCounts(**RECIPE, anchor="shared"), SIZES, prompts=1000, seconds_per_forward=0.5)
    assert result.seconds == pytest.approx(149.8 * 72 * 0.5)
    text = result.table()
    for part in ("149.8", "72 images, 10786 F, 1 h 29 min (F measured", "48.0 backward passes", "at most", "rough"):
        assert part in text
    assert "measured" not in estimate(RunCounts(**RECIPE), SIZES).table()
    assert [duration(seconds) for seconds in (0.25, 59.0, 61.0, 3600.0, 7500.0)] == [
        "0.2 s",
        "59.0 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


@pytest.fixture(scope="module")
def backbone() -> TinyBackbone:
    backbone = TinyBackbone.from_pretrained(ModelSettings())
    Adapters(backbone.transformer, backbone.lora_targets, 4)
    return backbone


def kept_bytes(backbone: TinyBackbone, batch: int) -> int:
    """The bytes that a forward keeps for its backward, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.transformer.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    from backbones.interface import repeat
    from prompts.prompt import Prompt

    conditioning = repeat(backbone.encode([Prompt("")]), batch)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone.velocity(torch.randn(batch, *backbone.latent_shape), torch.full((batch,), 0.5), conditioning)
    return sum(storage.nbytes() for storage in kept.values())


def test_sizes_of_the_tiny_model(backbone: TinyBackbone) -> None:
    sizes = sizes_of(backbone, Prompt(""))
    assert (sizes.adapters, sizes.tokens, sizes.width, sizes.layers) == (3, 64 + 10, 128, 4)
    assert sizes.lora_parameters == sum(p.numel() for p in backbone.transformer.parameters() if p.requires_grad)
    assert 2.2e6 < sizes.frozen_bytes / sizes.value_bytes < 2.4e6
    assert sizes.prompt_bytes == (10 + 1) * 128 * 4


def test_activations_are_near_those_that_a_forward_keeps(backbone: TinyBackbone) -> None:
    counts = RunCounts(samples=6, sampler_steps=1, timesteps=1, micro_batch=6)
    [rough] = [
        size for name, size, _ in estimate(counts, sizes_of(backbone, Prompt(""))).memory if name == "activations"
    ]
    assert 0.8 < rough / kept_bytes(backbone, 6) < 1.25


def test_a_forward_is_timed_without_gradient(backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []
    velocity = backbone.velocity
    monkeypatch.setattr(backbone, "velocity", lambda *args: graphs.append(velocity(*args).requires_grad))
    assert 0 < seconds_per_forward(backbone, Prompt(""), 2, calls=3) < 10
    assert graphs == [False] * 4


def test_a_model_without_adapters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable LoRA weights: add the adapters first"):
        sizes_of(TinyBackbone.from_pretrained(ModelSettings()), Prompt(""))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"refresh_every": 0}, "refresh_every must be at least 1"),
        ({"form": "mean"}, "form must be one of"),
        ({"anchor": "own"}, "anchor one of"),
        ({"probe": 1.0}, r"probe must be in \[0, 1\)"),
        ({"probe": 0.5, "form": "sum"}, "probe goes with"),
        ({"probe": 0.5, "refresh_every": 2}, "probe goes with"),
    ],
)
def test_counts_without_a_meaning_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunCounts(**{**RECIPE, **options})

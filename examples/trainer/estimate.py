"""What an epoch will cost, from counts alone: forwards and backwards per image, memory per rank, and time."""

import math
from dataclasses import dataclass, fields

FORMS = ("sum", "observe", "marble", "loop")
ANCHORS = ("per_reward", "shared", "none")
# A backward of a model of which only LoRA is trained, in forwards: measured 1.0 to 1.1 (benchmarks/step_cost_parts.py).
BACKWARD = 1.1
# Values kept for a backward, per token, unit of width and layer: 14.2 and 14.6 were counted on two SD3-type
# transformers with LoRA on all attention projections, 1.1 and 1.2 at the boundaries of checkpointed layers.
KEPT, KEPT_AT_BOUNDARY = 15.0, 1.2


@dataclass(frozen=True)
class RunCounts:
    """What one rank does in an epoch.

    ``samples``: images. ``sampler_steps``: forwards of a rollout, twice as many with ``guidance`` (CFG).
    ``timesteps``: trained per image. ``micro_batch``: images per backward. ``updates``: optimizer steps.

    ``form``: "sum", one backward of the weighted sum; "observe", the same with the rewards' gradients measured on every
    ``refresh_every``-th step; "marble", the factored route, solved on every ``refresh_every``-th step, or on a share
    ``probe`` of each step's micro-steps (0: on all); "loop", one backward per reward. ``rewards``: K. ``anchor``:
    DiffusionNFT's, "per_reward" (M = 2 terms, a pass each), "shared" (M = 1 and a shared term), "none" for a loss
    without one. ``kl``: a term with the reference policy, which is shared, and takes ``references`` of its forwards (2:
    under classifier-free guidance). ``shared_every``: shared terms on every n-th
    micro-step. ``checkpointing``: activations are recomputed in every backward pass.

    Raises ``ValueError`` for what is out of range or does not go together.
    """

    samples: int
    sampler_steps: int
    timesteps: int
    micro_batch: int
    updates: int = 1
    guidance: bool = False
    form: str = "marble"
    rewards: int = 5
    anchor: str = "per_reward"
    kl: bool = True
    references: int = 1
    refresh_every: int = 1
    probe: float = 0.0
    shared_every: int = 1
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise ValueError(f"{field.name} must be at least 1, got {value}")
        if self.form not in FORMS or self.anchor not in ANCHORS:
            raise ValueError(f"form must be one of {FORMS}, anchor one of {ANCHORS}: {self.form!r}, {self.anchor!r}")
        if not 0 <= self.probe < 1:
            raise ValueError(f"probe must be in [0, 1), got {self.probe}: 0 takes all micro-steps")
        if self.probe and (self.form != "marble" or self.refresh_every > 1):
            raise ValueError("probe goes with form='marble' and refresh_every=1")

    @property
    def micro_steps(self) -> int:
        """Backward calls per optimizer step."""
        return self.timesteps * math.ceil(self.samples / (self.updates * self.micro_batch))

    @property
    def probes(self) -> int:
        """Those of them that make rows; all of them without ``probe``, none under a plain sum."""
        if self.form == "sum":
            return 0
        return math.ceil(round(self.probe * self.micro_steps, 9)) if self.probe else self.micro_steps


@dataclass(frozen=True)
class ModelSizes:
    """``frozen_bytes``: all weights that are not LoRA's. ``lora_parameters``: of one adapter, in fp32; ``adapters`` of
    them. ``tokens`` of an image with its prompt, ``width`` and ``layers`` of the transformer, ``value_bytes`` of a
    value in its activations. ``prompt_bytes``: the embeddings of a prompt. ``trainer.model_sizes`` reads them.
    """

    frozen_bytes: int
    lora_parameters: int
    adapters: int
    tokens: int
    width: int
    layers: int
    value_bytes: int
    prompt_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Per image the forwards of each kind and the backward ``passes``; per rank and epoch everything else.

    ``backward_cost`` is that of a pass in forwards F. ``memory`` has (what, bytes, how it is known), on the device;
    ``cache_bytes`` of prompt embeddings are extra, wherever they are kept. ``seconds`` is ``None`` unless a forward was
    timed.
    """

    samples: int
    sampling: float
    old: float
    reference: float
    current: float
    passes: float
    backward_cost: float
    memory: tuple[tuple[str, int, str], ...]
    cache_bytes: int
    seconds: float | None

    @property
    def forwards(self) -> float:
        """The cost of an image in forwards F, backward passes converted."""
        return self.sampling + self.old + self.reference + self.current + self.passes * self.backward_cost

    @property
    def bytes(self) -> int:
        """The sum of ``memory``."""
        return sum(size for _, size, _ in self.memory)

    def table(self) -> str:
        """The estimate as text, with what is counted, measured, or rough."""
        kinds = {"rollout": self.sampling, "old policy": self.old, "reference": self.reference, "current": self.current}
        lines = ["forwards F per image"]
        lines += [f"  {name:<28}{value:>12.1f}" for name, value in kinds.items()]
        lines.append(f"  {f'{self.passes:.1f} backward passes':<28}{self.passes * self.backward_cost:>12.1f}")
        lines[-1] += f"  rough: {self.backward_cost:.1f} F each"
        lines.append(f"  {'together':<28}{self.forwards:>12.1f}")
        lines.append(f"epoch of a rank: {self.samples} images, {self.samples * self.forwards:.0f} F")
        if self.seconds is not None:
            lines[-1] += f", {duration(self.seconds)} (F measured; without encoding, decoding and rewards)"
        lines.append("device memory of a rank (without rewards, text encoders, decoding and what the allocator wastes)")
        lines += [f"  {name:<28}{size / 1e6:>9.1f} MB  {known}" for name, size, known in self.memory]
        lines.append(f"  {'together':<28}{self.bytes / 1e6:>9.1f} MB  rough")
        lines.append(f"cached prompt embeddings{self.cache_bytes / 1e6:>15.1f} MB  counted")
        return "\n".join(lines)


def estimate(
    counts: RunCounts, sizes: ModelSizes, prompts: int = 0, seconds_per_forward: float | None = None
) -> Estimate:
    """What a run with ``counts`` costs on a model of ``sizes``.

    An image takes sampler_steps forwards (twice as many with guidance) and, for each of its timesteps, one of the old,
    of the reference (where it is wanted) and of the current policy, and the backward passes of its form. A pass costs
    about 1.1 F, with checkpointing 1 F more.

    Args:
        counts: of a rank.
        sizes: of the model.
        prompts: whose embeddings are cached.
        seconds_per_forward: of one image, measured; ``None`` leaves the time out.
    """
    passes, references = _per_micro_step(counts)
    row = 4 * sizes.lora_parameters
    kept = KEPT * sizes.layers
    if counts.checkpointing:
        kept = KEPT + KEPT_AT_BOUNDARY * sizes.layers
    activations = counts.micro_batch * sizes.tokens * sizes.width * sizes.value_bytes * kept
    rows = counts.rewards if counts.probes else 0
    # The factored route makes K rows and adds them to the bank; in a loop, one at a time.
    made = 0 if counts.probes <= 1 else (1 if counts.form == "loop" else rows)
    result = Estimate(
        samples=counts.samples,
        sampling=counts.sampler_steps * (2 if counts.guidance else 1),
        old=counts.timesteps,
        reference=counts.timesteps * references,
        current=counts.timesteps,
        passes=counts.timesteps * passes,
        backward_cost=BACKWARD + counts.checkpointing,
        memory=(
            ("frozen weights", sizes.frozen_bytes, "counted"),
            (f"{sizes.adapters} LoRA adapters", sizes.adapters * row, "counted"),
            ("gradient, 2 moments", 3 * row, "counted"),
            (f"{rows} gradient rows", rows * row, "counted"),
            ("rows of the pass under way", made * row, "at most"),
            ("activations", round(activations), "rough"),
        ),
        cache_bytes=prompts * sizes.prompt_bytes,
        seconds=None,
    )
    if seconds_per_forward is None:
        return result
    return Estimate(**{**vars(result), "seconds": result.forwards * counts.samples * seconds_per_forward})


def _per_micro_step(counts: RunCounts) -> tuple[float, float]:
    """Backward passes and reference forwards of a micro-step, on average over micro-steps and steps."""
    terms = 2 if counts.anchor == "per_reward" else 1
    probed = counts.probes / counts.micro_steps
    reference = counts.kl * counts.references / counts.shared_every
    shared = (counts.kl or counts.anchor == "shared") / counts.shared_every
    if counts.form == "sum":
        return 1.0, reference
    if counts.probe:
        # Probes carry no shared terms; the other micro-steps take one backward of everything.
        return probed * terms + (1 - probed), (1 - probed) * reference
    # What a step that solves takes; the weighted sum that is only observed is a shared term itself.
    solving = {"observe": terms + 1, "marble": terms + shared, "loop": counts.rewards + shared}[counts.form]
    return 1 + (solving - 1) / counts.refresh_every, reference


def duration(seconds: float) -> str:
    """Seconds as "0.8 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

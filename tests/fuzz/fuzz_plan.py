"""A fuzz run as data: settings and a list of calls, drawn from one seed, so that it can be replayed and cut down."""

import random
from dataclasses import dataclass
from typing import Any

LENGTH = 40
NAMES = ("a", "b", "c", "d", "e")
BASES = ("sgd", "nesterov", "adamw", "adam", "foreach", "rmsprop", "adagrad", "adafactor")
FUSIBLE = ("adamw", "adam", "foreach")
# How often each call is drawn.
CALLS = {
    "backward": 30,
    "train": 24,
    "step": 12,
    "zero_grad": 10,
    "collect": 8,
    "balance": 6,
    "closure": 3,
    "mistake": 8,
    "lr": 3,
    "freeze": 3,
    "add_group": 1,
    "save_load": 3,
    "copy": 3,
}
# What one reward's gradient looks like in one micro-step, and how often.
KINDS = {
    "normal": 60,
    "absent": 12,
    "zero": 6,
    "nan": 4,
    "inf": 3,
    "huge": 4,
    "tiny": 4,
    "large": 2,
    "small": 2,
    "same": 4,
    "opposite": 4,
    "nan value": 2,
}
MISTAKES = (
    "unknown name",
    "missing name",
    "wrong shape",
    "no graph",
    "not a loss",
    "unknown collect",
    "empty collect",
    "shared shape",
    "foreign state",
    "backward after balance",
)


@dataclass(frozen=True)
class Call:
    """One call: its name, the seed of its numbers, and its options."""

    name: str
    seed: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The settings of an optimizer and the calls made on it."""

    seed: int
    settings: dict[str, Any]
    calls: tuple[Call, ...]


def draw(seed: int, length: int = LENGTH) -> Plan:
    """The plan of one seed."""
    rng = random.Random(seed)
    settings = _settings(rng)
    names = rng.choices(list(CALLS), list(CALLS.values()), k=length)
    return Plan(seed, settings, tuple(_call(name, settings["rewards"], rng) for name in names))


def _settings(rng: random.Random) -> dict[str, Any]:
    rewards = list(NAMES[: rng.choice((1, 2, 2, 3, 3, 3, 4, 5))])
    options: dict[str, Any] = {}
    if rng.random() < 0.35:
        options["ema"] = rng.choice((0.3, 0.9))
    if rng.random() < 0.25:
        options["normalize"] = False
    if rng.random() < 0.3:
        options["max_grad_norm"] = rng.choice((0.1, 1.0, 100.0))
    if rng.random() < 0.15:
        options["track_step"] = True
    slots = list(rewards)
    if len(rewards) > 2 and rng.random() < 0.25:
        options["groups"] = {"pair": rewards[:2]}
        slots = ["pair", *rewards[2:]]
    shape = rng.random()
    if shape < 0.15:
        options["weights"] = {name: rng.choice((0.0, 0.5, 2.0)) for name in slots[1:]} | {slots[0]: 1.0}
    elif shape < 0.3:
        options["floor"] = rng.choice((0.05, 0.5 / len(slots)))
    elif shape < 0.5:
        options["balancer"] = rng.choice(("equal", "observe", "fixed", "callable", "nan"))
    mode = rng.random()
    if mode < 0.25:
        options["refresh_every"] = rng.choice((2, 3, 7))
    elif mode < 0.45:
        options["micro_steps"] = rng.choice((2, 3, 4))
        options["probe"] = 0.5 if options["micro_steps"] == 2 else rng.choice((0.25, 0.5, 0.6))
    if rng.random() < 0.2:
        options["shared_every"] = rng.choice((2, 3))
    base = rng.choice(BASES)
    options["fused"] = base in FUSIBLE and rng.random() < 0.5
    dtype = rng.choice(("float64", "float64", "float32", "float32", "bfloat16"))
    if base == "adafactor":
        # Its own second moments overflow fp32 on huge gradients.
        dtype = "float64"
    scaler = rng.random() < 0.2
    return {"rewards": rewards, "base": base, "dtype": dtype, "scaler": scaler, "options": options}


def _call(name: str, rewards: list[str], rng: random.Random) -> Call:
    options: dict[str, Any] = {}
    if name in ("backward", "train", "closure"):
        options["micro"] = [_losses(rewards, rng) for _ in range(rng.choice((1, 1, 2, 3, 4)) if name == "train" else 1)]
        options["balance"] = rng.random() < 0.2
        options["set_to_none"] = rng.random() < 0.7
    elif name == "step":
        options["clip"] = rng.random() < 0.2
    elif name == "collect":
        options["reward"] = rng.randrange(len(rewards))
        options["kind"] = rng.choice(("normal", "normal", "normal", "zero", "nan", "inf", "huge", "tiny"))
    elif name == "zero_grad":
        options["set_to_none"] = rng.random() < 0.7
    elif name == "mistake":
        options["kind"] = rng.choice(MISTAKES)
    elif name == "lr":
        options["lr"] = rng.choice((0.0, 1e-3, 0.1, 1.0))
    elif name == "copy":
        options["how"] = rng.choice(("deepcopy", "pickle"))
    return Call(name, rng.getrandbits(32), options)


def _losses(rewards: list[str], rng: random.Random) -> dict[str, Any]:
    form = rng.choice(("mapping", "mapping", "mapping", "tensor", "separable", "collect"))
    if rng.random() < 0.04:
        kinds = [rng.choice(("absent", "nan", "zero", "inf"))] * len(rewards)
    elif rng.random() < 0.5:
        kinds = ["normal"] * len(rewards)
    else:
        kinds = rng.choices(list(KINDS), list(KINDS.values()), k=len(rewards))
    shared = rng.choices(("none", "normal", "zero", "nan", "huge", "tiny"), (60, 30, 2, 3, 2, 3))[0]
    return {"form": form, "kinds": kinds, "shared": shared}

"""One case in one mode: three steps of Marble against one backward per reward, then the time of both."""

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from marble_opt import Marble

from .case import Batch, Case
from .rewards import REWARDS, TERMS, Errors, errors, reward_loss, rows, uneven
from .training import NothingToTrainError, prepare, trained

STEPS, ROUNDS, WARM_UP = 3, 5, 1
LEARNING_RATE = 1e-4
LONGEST_TEXT = 160


def run(case: Case, mode: str) -> dict[str, Any]:
    """The fields of a row; ``outcome`` is "factored", "partly", "loop" or "none", see ``table.py``."""
    try:
        model, twin = _make(case, mode), _make(case, mode)
    except NothingToTrainError as error:
        return {"outcome": "none", "reasons": [str(error)]}
    try:
        _loss(case, twin, 0)
    except Exception as error:
        return {"outcome": "none", "reasons": [f"does not run without Marble: {type(error).__name__}: {error}"]}
    parameters = trained(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = _marble(list(parameters.values()), model=model)
        steps = [_step(case, model, twin, optimizer, seed) for seed in range(STEPS)]
        told = [
            str(each.message) for each in caught if "marble_opt" in each.filename or "backward" in str(each.message)
        ]
        seconds = _seconds(
            case, {"factored": (model, optimizer), "loop": (twin, _marble(list(trained(twin).values())))}
        )
    report = optimizer.report
    if report is None:
        raise RuntimeError("no report after three steps")
    fallback: dict[str, str] = report.fallback
    worst = max((each for each, _ in steps), key=lambda each: each.worst if each.worst == each.worst else torch.inf)
    return {
        "outcome": _outcome(report.route, fallback, steps[-1][1]),
        "trained_tensors": len(parameters),
        "trained_elements": sum(parameter.numel() for parameter in parameters.values()),
        "uncovered_tensors": len(fallback),
        "passes": report.passes,
        "terms": TERMS,
        "rewards": len(REWARDS),
        "error": max(each.overall for each, _ in steps),
        "worst_error": worst.worst,
        "worst_parameter": worst.parameter,
        "gram_error": max(each.gram for each, _ in steps),
        **seconds,
        "reasons": reasons(fallback),
        "warnings": len(told),
    }


def reasons(fallback: dict[str, str]) -> list[str]:
    """The two most frequent reasons, each with its number of parameters and one of them."""
    counts = Counter(fallback.values())
    example = {reason: name for name, reason in reversed(fallback.items())}
    return [
        f"{count} × {reason}"[:LONGEST_TEXT] + f" ({example[reason][-LONGEST_TEXT // 2 :]})"
        for reason, count in counts.most_common(2)
    ]


def _outcome(route: str, fallback: dict[str, str], reached: set[str]) -> str:
    if route != "factored" or reached <= set(fallback):
        return "loop"
    return "partly" if fallback else "factored"


def _make(case: Case, mode: str) -> nn.Module:
    # Built again rather than copied: a copy loses the hooks of parameters, which some tuners have.
    torch.manual_seed(0)
    return prepare(case.make(), mode)


def _marble(parameters: list[Tensor], **options: Any) -> Marble:
    route = {} if options else {"route": "loop"}
    base = torch.optim.SGD(parameters, lr=LEARNING_RATE)
    return Marble(base, rewards=REWARDS, balancer=uneven, **route, **options)


def _loss(case: Case, model: nn.Module, seed: int) -> Any:
    inputs = case.inputs(Batch(seed))
    # Dropout draws the same for both.
    torch.manual_seed(seed)
    return reward_loss(case.predict(model, inputs), seed)


def _step(case: Case, model: nn.Module, twin: nn.Module, optimizer: Marble, seed: int) -> tuple[Errors, set[str]]:
    """Errors of one step, and the names of the parameters that have a gradient."""
    twin.load_state_dict(model.state_dict())
    parameters = trained(model)
    # The twin is never watched, so that nothing can change what the gradients are compared with.
    truth = rows(_loss(case, twin, seed), list(trained(twin).values()))
    if not all(block.isfinite().all() for block in truth) or not any(block.any() for block in truth):
        raise RuntimeError("the case is no good: its gradients are zero or not finite")
    optimizer.zero_grad()
    loss = _loss(case, model, seed)
    optimizer.backward(loss)
    report = optimizer.balance()
    if report is None or report.dropped:
        raise RuntimeError("the step was dropped: no reward had a usable gradient")
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    count = len(REWARDS)
    expected = dict(zip(parameters, truth, strict=True))
    result = errors(expected, gradients, report.coefficients, report.gram[:count, :count])
    optimizer.step()
    return result, {name for name, block in expected.items() if block.any()}


def _seconds(case: Case, sides: dict[str, tuple[nn.Module, Marble]]) -> dict[str, float]:
    """Seconds of forward and backward by interleaved rounds; ratios factored / loop of the same round."""
    forward: dict[str, list[float]] = {name: [] for name in sides}
    backward: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    # Repeated comparisons are one backward in fifty refreshes; those of the first calls are a part of the warm-up.
    model, optimizer = sides["factored"]
    optimizer.watch(model, verify_every=None)
    for turn in range(WARM_UP + ROUNDS):
        for name, (model, optimizer) in sides.items():
            optimizer.zero_grad()
            loss, ahead = _timed(lambda model=model: _loss(case, model, 0))
            _, behind = _timed(lambda optimizer=optimizer, loss=loss: optimizer.backward(loss))
            optimizer.zero_grad()
            if turn >= WARM_UP:
                forward[name].append(ahead)
                backward[name].append(behind)
    found: dict[str, float] = {}
    for label, times in (("forward", forward), ("backward", backward)):
        ratios = sorted(own / loop for own, loop in zip(times["factored"], times["loop"], strict=True))
        middle = len(ratios) // 2
        found |= {f"{label}_ratio": ratios[middle], f"{label}_ratio_low": ratios[0], f"{label}_ratio_high": ratios[-1]}
        found[f"{label}_seconds"] = sorted(times["factored"])[middle]
    return found


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start

"""Which promises of a torch optimizer survive gradient balancing: Marble, a TorchJD loop, a PCGrad wrapper.

    python benchmarks/conformance.py            prints a table, writes benchmarks/results/conformance.jsonl

The checks are those of tests/conformance/. Each library is used as its documentation shows. TorchJD has no optimizer
wrapper: the optimizer of its loop is the base itself, so what concerns only the optimizer passes by construction.
"""

import argparse
import sys
import warnings
from importlib.metadata import version
from typing import Any

import torch
from measure import RESULTS, ROOT, facts, store
from pcgrad_wrapper import PCGrad

import marble_opt

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "conformance")]
from catalogue import CHECKS  # noqa: E402
from protocol import Wrapper  # noqa: E402


def _scaled(losses: Any, scaler: Any) -> list[Any]:
    present = [loss for loss in losses if loss is not None]
    return present if scaler is None else [scaler.scale(loss) for loss in present]


def _marble() -> Wrapper:
    return Wrapper(
        "Marble",
        lambda base, names: marble_opt.Marble(base, names),
        lambda opt, losses, scaler: opt.backward(dict(zip(opt.rewards, losses, strict=True)), scaler=scaler),
        lambda opt: opt.balance(),
    )


def _torchjd() -> Wrapper:
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import backward, jac_to_grad

    aggregator = UPGrad()

    def micro_step(opt: Any, losses: Any, scaler: Any) -> None:
        parameters = [parameter for group in opt.param_groups for parameter in group["params"]]
        present = _scaled(losses, scaler)
        if present:
            backward(present, inputs=parameters)
            jac_to_grad(parameters, aggregator)

    # Its QP rounds in single precision.
    return Wrapper(f"TorchJD {version('torchjd')} UPGrad", lambda base, names: base, micro_step, tolerance=1e-5)


def _pcgrad() -> Wrapper:
    return Wrapper(
        "PCGrad wrapper",
        lambda base, names: PCGrad(base),
        lambda opt, losses, scaler: opt.pc_backward(present) if (present := _scaled(losses, scaler)) else None,
        tolerance=1e-9,
    )


def outcome(wrapper: Wrapper, check: str) -> str | None:
    """``None`` if the check passes, else the first line of its failure."""
    torch.manual_seed(0)
    try:
        CHECKS[check](wrapper)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
    return None


def main() -> None:
    """Run every check on every wrapper."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(RESULTS / "conformance.jsonl"))
    path = type(RESULTS)(parser.parse_args().output)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    wrappers = [make() for make in (_marble, _torchjd, _pcgrad)]
    common = facts("conformance", {"checks": len(CHECKS)})
    rows = []
    for check in CHECKS:
        for wrapper in wrappers:
            message = outcome(wrapper, check)
            rows.append(common | {"variant": wrapper.name, "metric": check, "passed": message is None, "note": message})
    width = max(map(len, CHECKS))
    print(" " * width, *(f"{wrapper.name:>22}" for wrapper in wrappers))
    for check in CHECKS:
        marks = ["passed" if row["passed"] else "FAILED" for row in rows if row["metric"] == check]
        print(f"{check:{width}}", *(f"{mark:>22}" for mark in marks))
    print()
    for wrapper in wrappers:
        own = [row for row in rows if row["variant"] == wrapper.name]
        print(f"{wrapper.name}: {sum(row['passed'] for row in own)} of {len(own)} passed")
        failures: dict[str, list[str]] = {}
        for row in own:
            if not row["passed"]:
                failures.setdefault(row["note"], []).append(row["metric"])
        for note, checks in failures.items():
            print(f"  {checks[0]}{f' and {len(checks) - 1} more' if checks[1:] else ''}: {note}")
    store(rows, path, key=lambda row: (row["variant"], row["metric"]))


if __name__ == "__main__":
    main()

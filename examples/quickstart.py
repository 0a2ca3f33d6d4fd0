"""Two lines of change, on a toy that shows the problem: three losses of very different scale.

    python examples/quickstart.py

One linear layer has to serve three regression targets that partly disagree. Summed, the loss with the largest scale
gets what it wants; balanced, all three improve until they really conflict.
"""

import torch

import marble_opt

NAMES = ("small", "medium", "large")
SCALES = {"small": 0.01, "medium": 1.0, "large": 100.0}


def losses(model: torch.nn.Module, inputs: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean squared errors, each in its own scale."""
    outputs = model(inputs)
    return {name: SCALES[name] * (outputs - targets[name]).square().mean() for name in NAMES}


def fit(balanced: bool, steps: int = 300) -> dict[str, float]:
    """Train on the sum, or with Marble; returns each loss relative to its start."""
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 1)
    inputs = torch.randn(64, 16)
    common = torch.randn(16, 1)
    targets = {name: inputs @ (common + 0.7 * torch.randn(16, 1)) for name in NAMES}
    start = {name: loss.item() for name, loss in losses(model, inputs, targets).items()}
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    if balanced:
        optimizer = marble_opt.Marble(optimizer, rewards=NAMES)  # line 1
    for _ in range(steps):
        values = losses(model, inputs, targets)
        if isinstance(optimizer, marble_opt.Marble):
            optimizer.backward(values)  # line 2
        else:
            torch.stack(list(values.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: loss.item() / start[name] for name, loss in losses(model, inputs, targets).items()}


def main() -> None:
    """Fit both ways and print each loss as a share of its start."""
    results = {"sum": fit(balanced=False), "marble": fit(balanced=True)}
    print(f"{'loss / its start':<18}" + "".join(f"{method:>10}" for method in results))
    for name in NAMES:
        print(f"{name:<18}" + "".join(f"{values[name]:>10.3f}" for values in results.values()))


if __name__ == "__main__":
    main()

"""Two data sets that scikit-learn ships, each with several labels per row; nothing is downloaded.

"digits": 1797 handwritten digits of 8 × 8 pixels, grey values 0 to 16 (UCI ML repository). Labels: the digit, whether
it is odd, the image itself, and what is measured on it (:func:`moments`, :func:`thickness`).

"tumours": 569 breast tumours (UCI ML repository, Wisconsin diagnostic). From the means of ten measurements over the
cell nuclei of an image predict the diagnosis, and the means over the three largest values of five of the measurements,
in their own units: the losses span nine orders of magnitude. Scikit-learn's table made for several outputs, linnerud,
has 20 rows; diabetes would need its own inputs as targets, and what is left predicts them badly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SHARE = 0.2
_SPLIT_SEED = 2024
_ENLARGED = ("area", "texture", "smoothness", "compactness", "concavity")


@dataclass(frozen=True)
class Task:
    """One label of every row.

    ``labels`` [N] are classes 0 .. ``outputs`` − 1 (``scale`` None), or [N, ``outputs``] numbers in their own unit; NaN
    where there is none. ``centre`` [``outputs``] and ``scale`` are mean and standard deviation over the training rows:
    a network's outputs are standardised, its loss is in the square of the unit, times ``factor``, so that the unit sets
    the loss's scale and not how well one network learns one task. ``partial``: few of the training rows have it.
    """

    labels: Tensor
    outputs: int
    scale: float | None = None
    centre: Tensor | None = None
    partial: bool = False
    factor: float = 1.0

    def loss(self, outputs: Tensor, rows: Tensor) -> Tensor | None:
        """Cross-entropy, or mean squared error, over those of ``rows`` [B] that have a label; None if there is none."""
        present = self._present(rows)
        if not present.any():
            return None
        outputs, labels = outputs[present], self.labels[rows[present]]
        if self.scale is None:
            return self.factor * functional.cross_entropy(outputs, labels.long())
        error = functional.mse_loss(outputs, (labels - self.centre) / self.scale)
        return self.factor * self.scale**2 * error

    def score(self, outputs: Tensor, rows: Tensor) -> float:
        """Accuracy, or R² = 1 − Σ (error)² / Σ (label − mean label)²; both at most 1, and the same in all units."""
        labels = self.labels[rows]
        if self.scale is None:
            return (outputs.argmax(1) == labels).double().mean().item()
        error = (self.centre + self.scale * outputs - labels).square().sum()
        return 1 - (error / (labels - labels.mean(0)).square().sum()).item()

    def _present(self, rows: Tensor) -> Tensor:
        return ~self.labels[rows].isnan().reshape(len(rows), -1).any(1)


@dataclass(frozen=True)
class Table:
    """``inputs`` [N, D], standardised; its tasks; disjoint rows ``train``, ``validation``, ``test``, fixed."""

    inputs: Tensor
    tasks: Mapping[str, Task]
    train: Tensor
    validation: Tensor
    test: Tensor

    def rescaled(self, factors: Mapping[str, float]) -> "Table":
        """With some losses multiplied: a length in mm instead of cm multiplies a squared error by 100."""
        factors = {name: 1.0 for name in self.tasks} | dict(factors)
        return replace(self, tasks={name: replace(task, factor=factors[name]) for name, task in self.tasks.items()})

    def standardised(self) -> "Table":
        """With regression losses in standard deviations: no units."""
        return self.rescaled({name: task.scale**-2 for name, task in self.tasks.items() if task.scale is not None})

    def only(self, name: str) -> "Table":
        """With one task."""
        return replace(self, tasks={name: self.tasks[name]})

    def masked(self, seed: int) -> "Table":
        """With the partial tasks' labels on a random share ``SHARE`` of the training rows, each task's its own."""
        random = torch.Generator().manual_seed(seed)
        tasks = {}
        for name, task in self.tasks.items():
            hidden = self.train[torch.rand(len(self.train), generator=random) >= SHARE] if task.partial else []
            labels = task.labels.clone()
            labels[hidden] = torch.nan
            tasks[name] = replace(task, labels=labels)
        return replace(self, tasks=tasks)


@cache
def load(name: str) -> Table:
    """A data set by name: half of its rows to train on, a sixth to choose by, a third to report."""
    return {"digits": _digits, "tumours": _tumours}[name]()


def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass [N, 2] (x, y; pixels) and slant [N] of images [N, H, W].

    The slant is arctan(μ_xy / μ_yy) in degrees, μ the central second moments of the ink: the angle to the vertical
    of the shear that turns upright strokes into the image's.
    """
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    ink = images.sum((1, 2))
    centre = np.stack([(images * x).sum((1, 2)) / ink, (images * y).sum((1, 2)) / ink], 1)
    dx, dy = x - centre[:, :1, None], y - centre[:, 1:, None]
    return centre, np.degrees(np.arctan((images * dx * dy).sum((1, 2)) / (images * dy * dy).sum((1, 2))))


def thickness(images: np.ndarray) -> np.ndarray:
    """2 A / P [N] in pixels: A the ink, full ink being 1, P its perimeter, the sum of |differences| of neighbours.

    A bar w wide and l long has w l / (w + l), nearly w if it is long.
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    perimeter = np.abs(np.diff(padded, axis=1)).sum((1, 2)) + np.abs(np.diff(padded, axis=2)).sum((1, 2))
    return 2 * images.sum((1, 2)) / perimeter


def _digits() -> Table:
    from sklearn.datasets import load_digits

    found = load_digits()
    centre, slant = moments(found.images)
    classes = {
        "digit": (found.target, 10, False),
        "odd": (found.target % 2, 2, True),
    }
    numbers = {
        "slant": (slant, True),
        "centre": (centre, False),
        "thickness": (thickness(found.images / found.images.max()), False),
        "image": (found.data, False),
    }
    return _table(found.data, classes, numbers)


def _tumours() -> Table:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    columns = dict(zip(found.feature_names, found.data.T, strict=True))
    inputs = np.stack([column for name, column in columns.items() if name.startswith("mean ")], 1)
    numbers = {name: (columns[f"worst {name}"], name == "concavity") for name in _ENLARGED}
    return _table(inputs, {"diagnosis": (found.target, 2, True)}, numbers)


def _table(
    inputs: np.ndarray,
    classes: Mapping[str, tuple[np.ndarray, int, bool]],
    numbers: Mapping[str, tuple[np.ndarray, bool]],
) -> Table:
    """``classes``: labels, how many classes, partial; ``numbers``: labels, partial."""
    count = len(inputs)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    train, validation, test = order.split([count - count // 6 - count // 3, count // 6, count // 3])
    features = torch.tensor(inputs, dtype=torch.float32)
    # Some border pixels have no ink in any training row.
    spread = features[train].std(0)
    features = (features - features[train].mean(0)) / torch.where(spread > 0, spread, 1.0)
    tasks = {}
    for name, (labels, outputs, partial) in classes.items():
        tasks[name] = Task(torch.tensor(labels, dtype=torch.float32), outputs, partial=partial)
    for name, (labels, partial) in numbers.items():
        values = torch.tensor(labels, dtype=torch.float32).reshape(count, -1)
        centre = values[train].mean(0)
        scale = (values[train] - centre).square().mean().sqrt().item()
        tasks[name] = Task(values, values.shape[1], scale, centre, partial)
    return Table(features, tasks, train, validation, test)

"""Gradient balancing for post-training with several rewards.

opt = marble_opt.Marble(torch.optim.AdamW(params, lr=3e-4), rewards=["ocr", "geneval"])
opt.backward({"ocr": loss_ocr, "geneval": loss_geneval}, shared=kl)
opt.step()
"""

from marble_kernels.solvers import MinNorm

from . import losses, preferences
from .advantages import group_advantages
from .checkpoint import load_checkpoint, save_checkpoint
from .gram import gram_matrix
from .min_norm import solve_min_norm
from .optimizer import Marble
from .reference_solvers import LinearConstraints
from .separable import SeparableLoss
from .telemetry import Balance, JsonLinesSink, TelemetryWriter, TensorBoardSink

__version__ = "0.1.0"

__all__ = [
    "Balance",
    "JsonLinesSink",
    "LinearConstraints",
    "Marble",
    "MinNorm",
    "SeparableLoss",
    "TelemetryWriter",
    "TensorBoardSink",
    "gram_matrix",
    "group_advantages",
    "load_checkpoint",
    "losses",
    "preferences",
    "save_checkpoint",
    "solve_min_norm",
]

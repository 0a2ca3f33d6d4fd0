"""The checkpoint that examples/slider_app.py shows, from a run of benchmarks/slider.py."""

import json
from datetime import date
from pathlib import Path

import torch

from benchmarks.measure import ROOT, commit
from benchmarks.slider_figure import curve
from benchmarks.slider_runs import PRESET, slider_config, trained

SHIPPED = ROOT / "examples" / "tiny" / "slider"


def ship(rows: list[dict], output: Path, seed: int, epochs: int, folder: Path = SHIPPED) -> Path:
    """Write the averaged LoRA and conditioning of the run in ``output`` as fp16, and slider.json: how it was made and
    the front of the rows."""
    trainer, _ = trained(slider_config(seed, epochs, "gdpo"), output)
    for weight in trainer.adapters.parameters("average").values():
        weight.data = weight.data.half()
    trainer.backbone.save_lora(folder, "average")
    names = list(trainer.config.rewards)
    points = curve(rows, "slider", seed, "trained")
    grid = torch.linspace(0, 1, len(points), dtype=torch.float64)
    facts = {
        "made_by": "python benchmarks/slider.py --ship",
        "preset": PRESET,
        "epochs": epochs,
        "seed": seed,
        "sampler_steps": trainer.config.rollout.steps,
        "front_of": "mean scores on held-out prompts, before rounding to fp16",
        "front": [
            {"omega": [round(float(w), 6), round(1 - float(w), 6)], "scores": dict(zip(names, point, strict=True))}
            for w, point in zip(grid, points, strict=True)
        ],
        "commit": commit(),
        "date": date.today().isoformat(),
    }
    (folder / "slider.json").write_text(json.dumps(facts, indent=2) + "\n")
    return folder

"""The checkpoint that examples/slider_app.py shows: a run of its own, with a KL term that keeps the images clean."""

import json
from datetime import date
from pathlib import Path

from benchmarks.measure import ROOT, commit
from benchmarks.slider_runs import EVALUATION, PRESET, judged, trained
from marble_opt.preferences import simplex_grid
from trainer.config import load_config

SHIPPED = ROOT / "examples" / "tiny" / "slider"
SETTINGS = ("seed=0", "epochs=24", "loss.kl=0.5")


def ship(output: Path, folder: Path = SHIPPED) -> Path:
    """Train in ``output``; write the averaged LoRA and conditioning as fp16, and slider.json: how they were made,
    their front, mean scores on held-out prompts for eleven preferences, and what composition, which nobody trained on,
    is there."""
    trainer, _ = trained(load_config(PRESET, [*SETTINGS, *EVALUATION]), output)
    for weight in trainer.adapters.parameters("average").values():
        weight.data = weight.data.half().float()
    grid = simplex_grid(2, 10)
    points = [judged(trainer.backbone, trainer.adapters, "average", trainer, omega) for omega in grid]
    for weight in trainer.adapters.parameters("average").values():
        weight.data = weight.data.half()
    trainer.backbone.save_lora(folder, "average")
    facts = {
        "made_by": "python benchmarks/slider.py --ship",
        "preset": PRESET,
        "settings": list(SETTINGS),
        "sampler_steps": trainer.config.rollout.steps,
        "front_of": "mean scores on held-out prompts",
        "front": [
            {"omega": omega.tolist(), "scores": {name: round(point[name], 6) for name in trainer.config.rewards}}
            for omega, point in zip(grid, points, strict=True)
        ],
        "composition": [round(point["composition"], 6) for point in points],
        "commit": commit(),
        "date": date.today().isoformat(),
    }
    (folder / "slider.json").write_text(json.dumps(facts, indent=2) + "\n")
    return folder

"""Post-train a text-to-image model with five rewards, balanced or summed.

    python examples/train.py --model tiny --balance sum marble --output runs/demo

Each method runs with the same seeds, prompts and rollout budget. A run that is stopped (Ctrl-C, kill)
continues with --resume, bit for bit on a CPU.
"""

import argparse
import json
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from tiny.model import CHECKPOINT, TinyModel
from tiny.rewards import REWARDS
from trainer import checkpoint
from trainer.config import METHODS, Config
from trainer.evaluation import evaluate
from trainer.figure import draw
from trainer.rows import write_rows
from trainer.table import Run, table
from trainer.trainer import Trainer


def train(config: Config, pretrained: Path, output: Path, resume: bool) -> Run:
    """Run one method for one seed in a folder of its own; under ``resume`` continue what is found there."""
    folder = output / f"{config.method}-seed{config.seed}"
    trainer = Trainer(config, TinyModel.from_pretrained(pretrained))
    saved = checkpoint.load(folder)
    if saved is not None and not resume:
        raise ValueError(f"{folder} holds a run already: continue it with --resume, or choose another --output")
    if saved is not None:
        trainer.load_state_dict(saved)
    label = f"{config.method} seed {config.seed}"
    with tqdm(total=config.steps, initial=trainer.step, desc=label, unit="step") as bar:
        while trainer.step < config.steps:
            numbers = trainer.train_step()
            if trainer.step % config.eval_every == 0 and trainer.step < config.steps:
                trainer.evaluate()
            checkpoint.save(folder, trainer.state_dict())
            bar.update()
            bar.set_postfix({name: f"{numbers[f'train/{name}']:.2f}" for name in REWARDS})
    final = trainer.evaluate()
    return Run(config, trainer.history, trainer.evaluations, final)


def main() -> None:
    """Parse the command line, run every method and seed, print the table, draw the figure."""
    arguments = parse()
    torch.use_deterministic_algorithms(True)
    try:
        configs = [config_of(arguments, method, seed) for method in arguments.balance for seed in arguments.seeds]
        base = evaluate(TinyModel.from_pretrained(arguments.checkpoint), None, None, configs[0])
        runs = [train(config, arguments.checkpoint, arguments.output, arguments.resume) for config in configs]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"\nstopped; finished steps are in {arguments.output}: add --resume to continue") from None
    print(table(base, runs))
    figure = draw(base, runs, arguments.output / "report.png")
    print(f"figure: {figure}\nrows: {write_rows(base, runs, arguments.output / 'rows.jsonl')}")


def config_of(arguments: argparse.Namespace, method: str, seed: int) -> Config:
    """The config of one run, from the command line."""
    names = {field.name for field in fields(Config)} - {"method", "seed"}
    values = {name: getattr(arguments, name) for name in names}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Config(method=method, seed=seed, **{**values, **lists})


def parse() -> argparse.Namespace:
    """The command line: one option per field of ``Config``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny"], default="tiny", help="the model family")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the pretrained model")
    parser.add_argument("--balance", nargs="+", choices=METHODS, default=["marble"], help="methods to run")
    parser.add_argument("--seeds", "--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--resume", action="store_true", help="continue the runs found in --output")
    for field in fields(Config):
        if field.name not in ("method", "seed"):
            option, default = f"--{field.name.replace('_', '-')}", field.default
            if isinstance(default, tuple):
                parser.add_argument(option, type=type(default[0]), nargs=len(default), default=default)
            else:
                kind = json.loads if isinstance(default, bool) else type(default)
                parser.add_argument(option, type=kind, default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()

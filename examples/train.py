"""Post-train an image, editing or video model with several rewards, balanced or summed.

    python examples/train.py --model tiny --balance sum marble --output runs/demo
    python examples/train.py --model tiny --algorithm crd --output runs/crd
    python examples/train.py --model tiny-edit --output runs/edit
    torchrun --nproc-per-node 8 examples/train.py --model stabilityai/stable-diffusion-3.5-medium
    python examples/train.py --config marble_sd35_1gpu optimizer.lr=1e-4 rewards.geneval.url=http://10.0.0.2:18085

Every setting can be given as section.key=value; the sections are in trainer/settings.py, the presets in presets/.
Each method runs with the same seeds, prompts and rollout budget. A run that is stopped (Ctrl-C, kill) continues with
--resume, bit for bit on a CPU.
"""

import argparse
import re
import sys
from pathlib import Path

import torch

from backbones.load import SHIPPED
from trainer import ranks
from trainer.config import ALGORITHMS, METHODS, load_config
from trainer.config_files import PRESETS
from trainer.errors import is_for_the_user
from trainer.own_presets import own_preset
from trainer.rows import write_rows
from trainer.run import Run, train
from trainer.table import table


def main() -> None:
    """Parse the command line, run every method and seed, print the table, draw the figure."""
    arguments, overrides = parse(sys.argv[1:])
    runs: list[Run] = []
    try:
        if arguments.config is None:
            arguments.config = own_preset(arguments.model or "tiny", arguments.algorithm or "nft")
        methods = [[f"method={method}"] for method in arguments.balance or []] or [[]]
        configs = [
            load_config(arguments.config, [*overrides, *method, f"seed={seed}"])
            for method in methods
            for seed in arguments.seeds
        ]
        device = ranks.start(arguments.device)
        torch.use_deterministic_algorithms(device.type == "cpu")
        for config in configs:
            folder = arguments.output / f"{config.method}-seed{config.seed}"
            base = runs[0].base if runs else None
            runs.append(train(config, folder, arguments.resume, str(device), base))
    except (ValueError, ImportError, ConnectionError) as error:
        if not is_for_the_user(error):
            raise
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"\nstopped; finished epochs are in {arguments.output}: add --resume to continue") from None
    finally:
        ranks.stop()
    if ranks.is_main():
        # Here, so that the other ranks start without what draws.
        from trainer.figure import draw

        print(table(runs))
        print(f"figure: {draw(runs, arguments.output / 'report.png')}")
        print(f"rows: {write_rows(runs, arguments.output / 'rows.jsonl')}")


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line: its options, and the settings "section.key=value", which may stand anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
    parser.add_argument("--model", help=f"{', '.join(SHIPPED)}, a hub id or the folder of a saved pipeline")
    parser.add_argument(
        "--config", help=f"a preset ({presets}) or a YAML file; default: that of the model and algorithm"
    )
    parser.add_argument("--algorithm", choices=ALGORITHMS, help="default: the config's")
    parser.add_argument("--balance", nargs="+", choices=METHODS, help="methods to run; default: the config's")
    parser.add_argument("--seeds", "--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--resume", action="store_true", help="continue the runs found in --output")
    parser.add_argument("--device", default="", help="default: this rank's GPU, else the CPU")
    # A path may hold "=" as well: --output runs/lr=1e-4.
    overrides = [word for word in words if re.match(r"\w[\w.-]*=", word)]
    arguments = parser.parse_args([word for word in words if word not in overrides])
    given = {"model.name": arguments.model, "algorithm": arguments.algorithm}
    return arguments, [*(f"{key}={value}" for key, value in given.items() if value), *overrides]


if __name__ == "__main__":
    main()

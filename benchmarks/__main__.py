"""The comparison: what balancing gains over the weighted sum, what it costs, and why not another method.

python -m benchmarks                     as --quick
python -m benchmarks --quick             every question, short: minutes; rows and report under runs/comparison
python -m benchmarks --full              every question at full length: hours; rows under benchmarks/results
python -m benchmarks --full dials        one question; what has a row is not run again
python -m benchmarks --report            draw the report from the committed rows only
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from comparison.sweep import sweep  # noqa: E402
from report import write_report  # noqa: E402

QUESTIONS = {
    "tiny": "comparison.tiny",
    "tiny_judges": "comparison.tiny_judges",
    "dials": "comparison.dials",
    "ablations": "comparison.ablations",
    "classic_tuning": "comparison.classic_tuning",
    "classic": "comparison.classic",
    "digits": "comparison.digits",
}


def main() -> int:
    """Run, then report; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "questions", nargs="*", choices=[*QUESTIONS, []], help=f"of {', '.join(QUESTIONS)}; default all"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_const", const="quick", dest="length")
    length.add_argument("--full", action="store_const", const="full", dest="length")
    length.add_argument("--report", action="store_true")
    parser.set_defaults(length="quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, of one thread each")
    arguments = parser.parse_args()
    short = arguments.length == "quick" and not arguments.report
    folder = HERE.parent / "runs" / "comparison" if short else HERE / "results"
    failed = 0
    for name in [] if arguments.report else arguments.questions or QUESTIONS:
        failed += sweep(import_module(QUESTIONS[name]), arguments.length, folder, arguments.device, arguments.jobs)
    print(write_report(folder))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""`examples/serve_rewards.py` with the rewards of odd_rewards.py besides."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

import odd_rewards  # noqa: F401

from serve_rewards import main

main()

"""`examples/serve_rewards.py` with odd_rewards.py besides; --small takes the limits of bad_requests.py."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

import odd_rewards  # noqa: F401

import serve_rewards

if "--small" in sys.argv:
    from bad_requests import LIMITS

    sys.argv.remove("--small")
    serve_rewards.limits_of = lambda arguments: replace(LIMITS, queue=arguments.queue)

serve_rewards.main()

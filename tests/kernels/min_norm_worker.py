"""Runs cases of min_norm_cases in Triton's interpreter; prints one JSON object: case → traceback or null.

A process of its own, because the interpreter is chosen when Triton is imported.
"""

import json
import os
import traceback
import warnings

os.environ["TRITON_INTERPRET"] = "1"
warnings.simplefilter("ignore")

from min_norm_cases import CASES

results = {}
for name, case in CASES.items():
    try:
        case("cpu")
        results[name] = None
    except Exception:
        results[name] = traceback.format_exc()[-4000:]
print(json.dumps(results))

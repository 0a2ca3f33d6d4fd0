"""Runs every case of streaming_cases in Triton's interpreter; prints one JSON object: case → traceback or null.

A process of its own, because the interpreter is chosen when Triton is imported.
"""

import json
import os
import traceback

os.environ["TRITON_INTERPRET"] = "1"

import torch
from streaming_cases import CASES
from triton.runtime import interpreter

# Loop bounds that were loaded are arrays of one element here. numpy 2.4 no longer turns those into numbers, which the
# interpreter of triton 3.6 relies on.
_patch = interpreter._patch_lang_tensor


def _patch_with_index(tensor: type, *scope: object) -> None:
    _patch(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.squeeze())


interpreter._patch_lang_tensor = _patch_with_index

results = {}
for name, case in CASES.items():
    torch.manual_seed(0)
    try:
        case("cpu")
        results[name] = None
    except Exception:
        results[name] = traceback.format_exc()[-4000:]
print(json.dumps(results))

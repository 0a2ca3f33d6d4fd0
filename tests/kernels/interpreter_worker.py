"""Runs every case of a module in Triton's interpreter; prints one JSON object: case → traceback or null.

A process of its own, because the interpreter is chosen when Triton is imported.
"""

import json
import os
import sys
import traceback
import warnings
from importlib import import_module

os.environ["TRITON_INTERPRET"] = "1"
warnings.simplefilter("ignore")

import torch
from triton.runtime import interpreter

# Loop bounds that were loaded are arrays of one element here. numpy 2.4 no longer turns those into numbers, which the
# interpreter of triton 3.6 relies on.
_patch = interpreter._patch_lang_tensor


def _patch_with_index(tensor: type, *scope: object) -> None:
    _patch(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.squeeze())


interpreter._patch_lang_tensor = _patch_with_index

results = {}
for name, case in import_module(sys.argv[1]).CASES.items():
    torch.manual_seed(0)
    try:
        case("cpu")
        results[name] = None
    except Exception:
        results[name] = traceback.format_exc()[-4000:]
print(json.dumps(results))

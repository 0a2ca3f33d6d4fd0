"""Runs every case of the modules that its arguments name in Triton's interpreter.

Prints one JSON object: case → traceback or null.

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

# Each call of a jit function within a kernel redirects all of triton.language once more: half of the time. The first is
# enough: what it redirects is never restored, or else the next launch redirects it again.
_call = interpreter.InterpretedFunction.__call__
_called = set()


def _call_redirected(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    if self.fn in _called:
        return self.rewrite()(*args, **kwargs)
    _called.add(self.fn)
    return _call(self, *args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call_redirected

results: dict[str, str | None] = {}
cases = [case for module in sys.argv[1:] for case in import_module(module).CASES.items()]
for name, case in cases:
    assert name not in results, f"two cases are called {name}"
    torch.manual_seed(0)
    try:
        case("cpu")
        results[name] = None
    except Exception:
        results[name] = traceback.format_exc()[-4000:]
print(json.dumps(results))

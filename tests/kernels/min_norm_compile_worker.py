"""Compiles the min-norm kernel for GPUs that are not here and prints one JSON object per variant and target.

A process of its own with the interpreter off.
"""

import json
import os
import re
import sys
import warnings

os.environ["TRITON_INTERPRET"] = "0"
warnings.simplefilter("ignore")

import triton
from assembler import resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from marble_kernels.min_norm_triton import min_norm_kernel, warps

POINTERS = {name: "*fp64" for name in ("gram", "prior", "alpha", "value", "gap")} | {"mask": "*i1"}


def _compile(width: int, options: bool, architecture: int) -> dict:
    constants = {"WIDTH": width} | dict.fromkeys(("MASKED", "FLOORED", "PRIOR", "NORMALIZE"), options)
    names = min_norm_kernel.arg_names
    types = {f"{name}_pointer": kind for name, kind in POINTERS.items()} | {"size": "i32", "floor": "fp64"}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    source = ASTSource(min_norm_kernel, signature, {(names.index(key),): value for key, value in constants.items()})
    target = GPUTarget("cuda", architecture, 32)
    done = triton.compile(source, target=target, options={"num_warps": warps(width)})
    registers, spilled = resources(done.asm["ptx"], architecture)
    return {
        "width": width,
        "options": options,
        "target": architecture,
        "registers": registers,
        "spilled": spilled,
        "shared": done.metadata.shared,
        "barriers": len(re.findall(r"\bbar\.", done.asm["ptx"])),
    }


for architecture in map(int, sys.argv[1:]):
    for width in (8, 16, 32):
        for options in (False, True):
            print(json.dumps(_compile(width, options, architecture)), flush=True)

"""Compiles the streaming kernels for GPUs that are not here and prints one JSON object per kernel and target.

A process of its own with the interpreter off.
"""

import json
import os
import re
import sys
import warnings
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "0"
warnings.simplefilter("ignore")

import torch
import triton
from assembler import resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from marble_kernels import combine_triton, fused_adamw_triton, gram_passes_triton, gram_triton
from marble_kernels.tables import LANES

TABLES = ("addresses", "sizes", "offsets", "chunks", "tasks", "ranges")
POINTERS = ("partials", "result", "coefficients", "scale", "flat", "numbers", "lr_tensor")


def _type(name: str) -> str:
    if name in TABLES:
        return "*i64"
    if name in POINTERS:
        return "*fp32"
    return {"usable": "*u8", "count": "i32"}.get(name, "fp32")


def _compile(name: str, kernel: object, options: dict, architecture: int) -> dict:
    constants = {key: value for key, value in options.items() if key not in ("num_warps", "enable_fp_fusion")}
    names = kernel.arg_names
    signature = {key: "constexpr" if key in constants else _type(key) for key in names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, key in enumerate(names) if signature[key].startswith("*")}
    source = ASTSource(
        kernel, signature, {(names.index(key),): value for key, value in constants.items()}, attrs=aligned
    )
    build = {"num_warps": options["num_warps"], "enable_fp_fusion": options["enable_fp_fusion"]}
    done = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=build)
    ptx = done.asm["ptx"]
    registers, spilled = resources(ptx, architecture)
    count = lambda pattern: len(re.findall(pattern, ptx))  # noqa: E731
    return {
        "name": name,
        "target": architecture,
        "registers": registers,
        "spilled": spilled,
        "shared": done.metadata.shared,
        # A vector of 16 bytes is written as v4.b32 or as v2.b64; loads of fewer bytes are for tables and scalars.
        "vector_loads": count(r"ld\.global\S*\.v4\.[bf]32|ld\.global\S*\.v2\.[bf]64"),
        "vector_stores": count(r"st\.global\S*\.v4\.[bf]32|st\.global\S*\.v2\.[bf]64"),
        "vector_copies": count(r"cp\.async\S* \[[^\]]*\], \[[^\]]*\], 0x10"),
        "fused": count(r"fma\.rn\.f32"),
        "tensor_core": count(r"mma\S*\.sync|wgmma"),
        "tf32": count(r"\.tf32"),
        "wide_offsets": _wide_offsets(done.asm["ttir"]),
    }


def _wide_offsets(ttir: str) -> bool:
    """Whether the start of a chunk is multiplied out in 64 bits: its factor, CHUNK, is an i64 constant."""
    constants = dict(re.findall(r"(%[\w-]+) = arith\.constant (\d+) : i64", ttir))
    products = re.findall(r"arith\.muli (%[\w-]+), (%[\w-]+)(?: \{[^}]*\})? : i64", ttir)
    return any(int(constants.get(factor, 0)) >= LANES for _, factor in products)


def _cases() -> list[tuple[str, object, dict]]:
    found = []
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for label, dtype in dtypes.items():
        width = 16 // dtype.itemsize
        for count in (5, 10, 12, 16, 32):
            plan = gram_triton.first_pass_options((dtype, dtype), width, gram_triton.unrolled(count), count, False)
            found.append((f"gram {label} {count}", *plan))
        odd = gram_triton.first_pass_options((dtype,) * 3, 1, width * gram_triton.unrolled(5), 5, True)
        found.append((f"gram {label} 5 misaligned metric", *odd))
        for count in (2, 5):
            unroll = combine_triton.combine_unroll(count)
            options = combine_triton.combine_options((dtype, dtype, dtype), width, unroll, count)
            given = {"SHARED": combine_triton.TYPES[dtype], "SCALED": True, "FLAT": False}
            found.append((f"combine {label} {count}", combine_triton.combine_kernel, options | given))
            rows = SimpleNamespace(count=count, shared=True)
            options = fused_adamw_triton.update_options((dtype,) * 4, width, unroll, rows)
            given = {"SCALED": True, "USABLE": True, "DECOUPLED": True, "MAXIMIZE": False}
            found.append((f"adamw {label} {count}", fused_adamw_triton.adamw_update, options | given))
    found.append(("reduce", gram_passes_triton.gram_reduce, {"K": 5, "BLOCK": 1024, **gram_triton.COMPILE}))
    prepare = fused_adamw_triton.prepare_options(10, usable=True, lr_tensor=True)
    found.append(("prepare", fused_adamw_triton.adamw_prepare, prepare))
    return found


for name, kernel, options in _cases():
    for architecture in map(int, sys.argv[1:] or (80, 90)):
        print(json.dumps(_compile(name, kernel, options, architecture)), flush=True)

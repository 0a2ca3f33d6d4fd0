"""Elimination for a handful of rows as straight-line Python: no loop, no list, one local variable per entry.

A call into LAPACK through numpy costs some 4 µs whatever the size, as much as a hundred operations on local variables.
"""

from collections.abc import Callable
from functools import cache

MAX_STRAIGHT_SIZE = 8

Elimination = Callable[[list[list[float]], float], tuple[list[float], list[float]] | None]


@cache
def elimination(size: int) -> Elimination:
    """A function of the rows of G [K, K] and a shift c: x with (G + c 1 1ᵀ) x = 1 and G x; ``None`` if a pivot is ≤ 0.

    With H = G + c 1 1ᵀ, row k of the triangle is left as h_kj and the right-hand side as y_k:

        h_ij ← h_ij − h_ki h_kj / h_kk,    y_i ← y_i − h_ki y_k / h_kk,    x_k = (y_k − Σ_{j>k} h_kj x_j) / h_kk
    """
    span = range(size)
    names = [f"[{', '.join(f'g{i}{j}' for j in span)}]" for i in span]
    lines = ["def solve(rows, shift):", f"    [{', '.join(names)}] = rows"]
    lines += [f"    h{i}{j} = g{i}{j} + shift" for i in span for j in span[i:]]
    for k in span:
        lines += [f"    if not h{k}{k} > 0.0:", "        return None"]
        for i in span[k + 1 :]:
            right = f"f * y{k}" if k else "f"
            lines += [f"    f = h{k}{i} / h{k}{k}", f"    y{i} = {f'y{i}' if k else '1.0'} - {right}"]
            lines += [f"    h{i}{j} -= f * h{k}{j}" for j in span[i:]]
    for k in reversed(span):
        known = "".join(f" - h{k}{j} * x{j}" for j in span[k + 1 :])
        lines.append(f"    x{k} = ({f'y{k}' if k else '1.0'}{known}) / h{k}{k}")
    slopes = [" + ".join(f"g{i}{j} * x{j}" for j in span) for i in span]
    lines.append(f"    return [{', '.join(f'x{k}' for k in span)}], [{', '.join(slopes)}]")
    scope: dict[str, Elimination] = {}
    exec("\n".join(lines), scope)
    return scope["solve"]

"""The forms in which K gradients are given, and one view of them: a segment per parameter.

    rows[k] = (row k of segment 0, row k of segment 1, ...),  k = 0..K-1, and optionally one more row, ``shared``

Three forms are taken: one tensor [K, P] (a single segment); blocks, one tensor [K, *shape] per parameter (``None``: no
reward reaches this parameter); or K lists of tensors, ``None`` standing for zero. The kernels read the segments where
they lie, by address, so nothing is stacked or copied.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .memo import Memo
from .signature import Key, Signature, places, signature

Blocks: TypeAlias = Sequence[Tensor | None]
Lists: TypeAlias = Sequence[Sequence[Tensor | None]]
RowsLike: TypeAlias = Tensor | Blocks | Lists
SharedLike: TypeAlias = Tensor | Sequence[Tensor | None] | None
_facts: Memo["Facts"] = Memo(1024)
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Facts(NamedTuple):
    """What a check of all tensors of a call found. ``limit``: why the kernel cannot run, or ``None``; ``steps`` [N]:
    bytes from one row of a block to the next."""

    limit: str | None
    shapes: list[tuple[int, ...] | None]
    wide: bool
    steps: Tensor


class Rows:
    """K gradients and the shared one, segment by segment.

    Args:
        rows: one of the three forms above.
        shared: the last row: a tensor [P] for the first form, else a tensor or ``None`` per parameter.
        kinds: what the caller knows of the shapes, strides, dtypes and devices of all tensors, told apart from that of
            any other caller's; without, each tensor is asked.

    Attributes:
        count: K, ``shared`` left out.
        columns: per segment its block, or its K tensors.
        shared: per segment, or ``None`` if the rows are all there is.
        shapes: shape of each parameter; ``None`` where nothing reaches it. Known once :meth:`check` was called.
        wide: whether there is an fp64 row; likewise.
        flat: whether ``rows`` was one tensor [K, P]; ``listed``: whether it was K lists.

    Raises:
        ValueError: shapes that do not fit together, or nothing to read K from.
    """

    def __init__(self, rows: RowsLike, shared: SharedLike = None, kinds: Hashable = None) -> None:
        self.flat, self.listed = isinstance(rows, Tensor), False
        self.columns: list[Tensor | tuple[Tensor | None, ...] | None]
        if isinstance(rows, Tensor):
            if rows.dim() != 2:
                raise ValueError(f"rows must be [K, P], got shape {list(rows.shape)}")
            self.count, self.columns = rows.shape[0], [rows]
        elif any(isinstance(item, Tensor) for item in rows):
            self.count, self.columns = _blocks(rows)
        else:
            self.listed = True
            self.count, self.columns = _lists(rows)
        self.shared = _shared(shared, len(self.columns), self.flat)
        self.shapes: list[tuple[int, ...] | None] = []
        self.wide = False
        self._kinds = kinds
        self._steps: Tensor | None = None
        self._signature: Signature | None = None

    @classmethod
    def of(cls, rows: "RowsLike | Rows", shared: SharedLike) -> "Rows":
        """``rows`` itself if it is one already, whose shared row is its own."""
        if isinstance(rows, Rows):
            if shared is not None:
                raise ValueError("these rows have their shared row with them: give shared=None")
            return rows
        return cls(rows, shared)

    def check(self, key: Hashable, others: Callable[[], str | None]) -> str | None:
        """Check everything unless the same was checked before; returns why the kernel cannot run, or ``None``.

        Args:
            key: signatures of all that ``others`` checks.
            others: checks what belongs to the call besides the rows; the shapes are known by then.

        Raises:
            ValueError: shapes that do not fit, or what ``others`` raises.
        """

        def find() -> Facts:
            self.shapes = [self._shape(index) for index in range(len(self.columns))]
            self.wide = any(tensor.dtype == torch.float64 for tensor in self.tensors())
            own, other = self.limit(), others()
            return Facts(own or other, self.shapes, self.wide, self._find_steps())

        limit, self.shapes, self.wide, self._steps = _facts((key, self.form, self.signature().kinds), find)
        return limit

    @property
    def form(self) -> Hashable:
        """What the signature leaves open."""
        return (self.flat, self.listed, self.count, self.shared is None)

    @property
    def first(self) -> Tensor:
        """The first tensor; that all are on its device is for :meth:`check`."""
        return next(tensor for index in range(len(self.columns)) for tensor in self._segment(index))

    @property
    def device(self) -> torch.device:
        """Device of the first tensor."""
        return self.first.device

    @property
    def size(self) -> int:
        """K, plus one if there is a shared row."""
        return self.count + (self.shared is not None)

    def tensors(self) -> list[Tensor]:
        """Every tensor there is."""
        found: list[Tensor] = []
        for column in self.columns:
            if isinstance(column, Tensor):
                found.append(column)
            elif column is not None:
                found.extend(tensor for tensor in column if tensor is not None)
        return found + [tensor for tensor in self.shared or () if tensor is not None]

    def row_dtype(self, index: int) -> torch.dtype | None:
        """Data type of a segment's rows, ``None`` if it has none."""
        column = self.columns[index]
        if column is None or isinstance(column, Tensor):
            return None if column is None else column.dtype
        return next((tensor.dtype for tensor in column if tensor is not None), None)

    def parts(self, index: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """A segment's rows [K, n] and shared row [n], converted; ``None`` where nothing reaches it. For the twins."""
        column, last = self.columns[index], None if self.shared is None else self.shared[index]
        shared = None if last is None else last.detach().flatten().to(dtype)
        if isinstance(column, Tensor):
            return column.detach().flatten(1).to(dtype), shared
        some = next((tensor for tensor in column or () if tensor is not None), None)
        if column is None or some is None:
            return None, shared
        zero = torch.zeros(some.numel(), dtype=dtype, device=some.device)
        rows = [zero if tensor is None else tensor.detach().flatten().to(dtype) for tensor in column]
        return torch.stack(rows), shared

    def table(self) -> Tensor:
        """Address of each row of each segment, 0 where there is none, the shared one last: int64 [N, K (+ 1)]."""
        own = torch.tensor(self.signature().addresses.value, dtype=torch.int64)
        segments = len(self.columns)
        own, last = own[: len(own) - segments * (self.shared is not None)], own[len(own) - segments :]
        if self._steps is None:
            raise RuntimeError("check() comes before table(): this is a bug in marble_kernels")
        if self.listed:
            rows = own.view(segments, self.count)
        else:
            base = own.unsqueeze(1)
            rows = torch.where(base == 0, 0, base + torch.arange(self.count) * self._steps.unsqueeze(1))
        return rows if self.shared is None else torch.cat([rows, last.unsqueeze(1)], 1)

    def signature(self) -> Signature:
        """Everything that tables made from these rows depend on."""
        if self._signature is None:
            tensors: list[Tensor | None] = []
            for column in self.columns:
                tensors.extend(column if isinstance(column, tuple) else (column,))
            tensors.extend(self.shared or ())
            self._signature = (
                signature(tensors) if self._kinds is None else Signature(Key(self._kinds), Key(places(tensors)))
            )
        return self._signature

    def limit(self) -> str | None:
        """Why the kernels cannot read these rows, or ``None``."""
        for index, column in enumerate(self.columns):
            members = [tensor for tensor in column if tensor is not None] if isinstance(column, tuple) else []
            if len({tensor.dtype for tensor in members}) > 1:
                return f"the rows of segment {index} have several dtypes"
            if isinstance(column, Tensor) and not _rows_contiguous(column):
                return f"the rows of block {index}, strides {column.stride()}, are not contiguous"
            last = None if self.shared is None else self.shared[index]
            if not all(tensor.is_contiguous() for tensor in (*members, *(() if last is None else (last,)))):
                return f"a tensor of segment {index} is not contiguous"
        odd = sorted({str(tensor.dtype) for tensor in self.tensors()} - {str(dtype) for dtype in KERNEL_DTYPES})
        return f"the rows are {odd}, the kernels take float32, bfloat16 and float16" if odd else None

    def _find_steps(self) -> Tensor:
        columns = [column if isinstance(column, Tensor) else None for column in self.columns]
        return torch.tensor([0 if c is None else c.stride(0) * c.element_size() for c in columns])

    def _segment(self, index: int) -> list[Tensor]:
        column = self.columns[index]
        members = [column] if column is None or isinstance(column, Tensor) else list(column)
        return [
            tensor for tensor in (*members, None if self.shared is None else self.shared[index]) if tensor is not None
        ]

    def _shape(self, index: int) -> tuple[int, ...] | None:
        column = self.columns[index]
        if isinstance(column, Tensor) and (column.dim() == 0 or column.shape[0] != self.count):
            raise ValueError(f"blocks must have the same K, here {self.count}; block {index} is {list(column.shape)}")
        shapes = {tuple(t.shape[1:]) if t is column else tuple(t.shape) for t in self._segment(index)}
        if len(shapes) > 1:
            raise ValueError(f"parameter {index} has gradients of different shapes: {sorted(shapes)}")
        return next(iter(shapes), None)


def _blocks(rows: RowsLike) -> tuple[int, list[Tensor | tuple[Tensor | None, ...] | None]]:
    blocks = [item for item in rows if isinstance(item, Tensor)]
    if any(item is not None and not isinstance(item, Tensor) for item in rows):
        raise ValueError("rows mixes tensors and lists: give blocks [K, *shape], or K lists of tensors")
    if blocks[0].dim() == 0 or blocks[0].shape[0] == 0:
        raise ValueError(f"blocks must be [K, *shape] with K >= 1, got {list(blocks[0].shape)}")
    return blocks[0].shape[0], [item if isinstance(item, Tensor) else None for item in rows]


def _lists(rows: RowsLike) -> tuple[int, list[Tensor | tuple[Tensor | None, ...] | None]]:
    lists = [tuple(item) for item in rows if item is not None]
    if len(lists) != len(rows) or not any(isinstance(tensor, Tensor) for item in lists for tensor in item):
        raise ValueError("rows holds no tensor, so K is unknown: give [K, P], blocks [K, *shape] or K lists of tensors")
    lengths = {len(item) for item in lists}
    if len(lengths) != 1:
        raise ValueError(f"every row must list the same parameters, got rows of length {sorted(lengths)}")
    return len(lists), list(zip(*lists, strict=True))


def _shared(shared: SharedLike, segments: int, flat: bool) -> list[Tensor | None] | None:
    if shared is None:
        return None
    found: list[Tensor | None] = [shared] if isinstance(shared, Tensor) else list(shared)
    if isinstance(shared, Tensor) is not flat or len(found) != segments:
        wanted = "one tensor [P]" if flat else f"a tensor or None for each of the {segments} parameters"
        raise ValueError(f"shared must be {wanted}, as rows is; got {type(shared).__name__} of {len(found)}")
    return found


def _rows_contiguous(block: Tensor) -> bool:
    return block.is_contiguous() or block.numel() == 0 or block[0].is_contiguous()

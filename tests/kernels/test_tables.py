"""Tables of a launch: the work they describe, what makes a new one, and how long they are kept."""

import torch
from torch import Tensor

from marble_kernels.launches import launches
from marble_kernels.memo import Memo
from marble_kernels.segments import Rows
from marble_kernels.signature import Key, Signature, lasting_signature, signature
from marble_kernels.tables import LANES, Launch, Segment

CPU = torch.device("cpu")
FP32, BF16 = (torch.float32,), (torch.bfloat16,)


def plan(
    segments: list[Segment],
    addresses: list[list[int]] | None = None,
    unroll: int = 2,
    programs: int = 7,
    groups: int = 1,
    single: int = 0,
) -> list[Launch]:
    table = torch.tensor([[16]] * len(segments) if addresses is None else addresses)
    seen = Signature(Key(tuple(segments)), Key(tuple(table.flatten().tolist())))
    return launches([seen], lambda: segments, lambda: table, CPU, unroll, programs, groups, single=single)


def test_chunks_cover_every_element_once() -> None:
    sizes = [1, 5000, 4096, 0, 1023]
    launch = plan([Segment(size, FP32, parameter=index) for index, size in enumerate(sizes)], [[1]] * 5)[0]
    chunk = LANES * launch.vector * launch.unroll
    covered = {index: 0 for index in range(4)}
    for work in launch.chunks.tolist():
        segment, start = work >> 32, (work & 0xFFFFFFFF) * chunk
        left = min(int(launch.sizes[segment]) - start, chunk)
        assert left > 0
        covered[segment] += left
    assert [covered[index] for index in range(4)] == [1, 5000, 4096, 1023]
    assert launch.parameters == [0, 1, 2, 4]


def test_tasks_cover_every_chunk_once_and_stay_in_their_group() -> None:
    sizes = ((9000, 2), (100, 0), (50_000, 2), (3, 0))
    segments = [Segment(size, FP32, group=group, parameter=index) for index, (size, group) in enumerate(sizes)]
    (launch,) = plan(segments, [[8]] * 4, groups=4)
    seen: list[int] = []
    for group in range(4):
        for task in range(int(launch.ranges[group]), int(launch.ranges[group + 1])):
            first, end, stride = launch.tasks[3 * task : 3 * task + 3].tolist()
            chunks = list(range(first, end, stride))
            assert chunks
            groups = {0: 0, 1: 0, 2: 2, 3: 2}
            assert {groups[int(launch.chunks[chunk]) >> 32] for chunk in chunks} == {group}
            seen += chunks
    assert sorted(seen) == list(range(launch.work))


def test_other_dtypes_and_alignments_are_launched_apart() -> None:
    kinds = ((64, FP32), (64, FP32), (63, FP32), (64, BF16), (64, FP32))
    segments = [Segment(size, dtypes, parameter=index) for index, (size, dtypes) in enumerate(kinds)]
    found = plan(segments, [[16, 0, 3], [16, 20, 3], [16, 32, 3], [16, 32, 3], [16, 32, 3]], single=1)
    assert [(launch.vector, len(launch.parameters)) for launch in found] == [(4, 2), (1, 2), (8, 1)]
    # The same chunk, whatever the vector is.
    assert [launch.vector * launch.unroll for launch in found] == [8, 8, 16]


def test_the_same_tensors_make_nothing_new_and_moved_ones_their_addresses_alone() -> None:
    calls: list[str] = []

    def call(addresses: list[int]) -> list[Launch]:
        def table() -> Tensor:
            calls.append("table")
            return torch.tensor([[address] for address in addresses])

        def segments() -> list[Segment]:
            calls.append("segments")
            return [Segment(8, FP32, parameter=0), Segment(16, FP32, parameter=1)]

        return launches([Signature(Key("a kind"), Key(tuple(addresses)))], segments, table, CPU, 1)

    first = call([16, 32])
    assert call([16, 32]) is first
    assert calls == ["table", "segments"]
    (moved,) = call([48, 64])
    assert calls == ["table", "segments", "table"]
    assert (first[0].addresses.tolist(), moved.addresses.tolist()) == ([16, 32], [48, 64])
    assert moved.chunks is first[0].chunks
    # Where vectors are no longer possible, another launch is.
    assert [launch.vector for launch in call([48, 68])] == [4, 1]
    assert calls == ["table", "segments", "table", "table", "segments"]


def test_a_step_of_many_groups_finds_all_its_plans() -> None:
    calls: list[int] = []

    def call(group: int) -> list[Launch]:
        def table() -> Tensor:
            calls.append(group)
            return torch.full((12, 9), 16 + 16 * group)

        kind, place = Key(("group", group)), Key(("many", group))
        segments = [Segment(8, FP32, parameter=index) for index in range(12)]
        return launches([Signature(kind, place)], lambda: segments, table, CPU, 1)

    for _ in range(3):
        for group in range(300):
            call(group)
    assert calls == list(range(300))


def test_a_table_holds_where_each_row_begins() -> None:
    base, shared = torch.zeros(3, 4, 2), torch.zeros(4, 2)
    place, last = base.data_ptr(), shared.data_ptr()
    blocks = Rows([base, None, base[:, :2]], [None, shared, None])
    lists = Rows([[base[k], None, base[k, :2]] for k in range(3)], [None, shared, None])
    for rows in (blocks, lists):
        rows.check("a test", lambda: None)
        steps = [place + 32 * k for k in range(3)]
        assert rows.table().tolist() == [[*steps, 0], [0, 0, 0, last], [*steps, 0]]
    flat = Rows(base.view(3, 8)[:, 1:])
    flat.check("a test", lambda: None)
    assert flat.table().tolist() == [[place + 4 + 32 * k for k in range(3)]]


def test_a_signature_tells_tensors_apart() -> None:
    base = torch.zeros(4, 6)
    variants = [
        Rows(base),
        Rows(base[:, :5]),
        Rows(base.T),
        Rows(base.view(6, 4)),
        Rows(base.view(torch.int32)),
        Rows(base[1:]),
        Rows([base]),
        Rows(base, torch.zeros(6)),
        Rows([[row] for row in base]),
        Rows([[base[0]], [None], [base[2]], [base[3]]]),
    ]
    variants += [Rows(base[:1]), Rows([base[:1]]), Rows([[base[:1]]])]
    keys = {(rows.form, rows.signature()) for rows in variants}
    assert len(keys) == len(variants)


def test_lasting_tensors_are_looked_at_again_only_when_they_changed() -> None:
    tensors = [torch.zeros(3, 4), torch.zeros(2)]
    first = lasting_signature(tensors)
    assert first == signature(tensors)
    assert lasting_signature(tensors) is first
    tensors[1].data = torch.zeros(2, dtype=torch.bfloat16)
    assert lasting_signature(tensors) == signature(tensors) != first
    # The same place, another object: what was known of the old one does not count.
    tensors[0] = tensors[0].t()
    assert lasting_signature(tensors) == signature(tensors)
    # A square one that its data's transpose takes the place of has everything but its strides.
    square = torch.zeros(3, 3)
    seen = lasting_signature([square])
    square.data = square.data.t()
    assert lasting_signature([square]) == signature([square]) != seen
    square.data = square.data.t()
    half = torch.zeros(3, 3).view(torch.int32)
    lasting_signature([half])
    half.data = half.data.view(torch.float32)
    assert lasting_signature([half]) == signature([half])
    view = tensors[1].view(torch.float16)
    assert lasting_signature([tensors[0], view]) == signature([tensors[0], view]) != signature(tensors)


def test_a_memo_forgets_the_least_recently_used() -> None:
    memo: Memo[int] = Memo(2)
    assert [memo(key, lambda key=key: key * 10) for key in (1, 2, 1, 3)] == [10, 20, 10, 30]
    assert memo.get(1) == 10
    assert memo.get(2) is None


def test_a_memo_weighs_what_it_keeps() -> None:
    memo: Memo[int] = Memo(10, lambda value: value)
    for key in (4, 5):
        memo(key, lambda key=key: key)
    assert (memo.get(4), memo.total) == (4, 9)
    memo(3, lambda: 3)
    assert (memo.get(5), memo.get(4), memo.total) == (None, 4, 7)
    memo.forget(4)
    memo.forget(4)
    assert memo.total == 3
    # What is too heavy is kept all the same until the next one comes.
    assert memo(20, lambda: 20) == memo.get(20) == 20
    assert (memo.get(3), memo.total) == (None, 20)
    memo(1, lambda: 1)
    assert (memo.get(20), memo.total) == (None, 1)

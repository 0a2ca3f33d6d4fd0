"""Tables of a launch: the work they describe, what makes a new one, and how long they are kept."""

import torch

from marble_kernels.memo import Memo
from marble_kernels.segments import Rows
from marble_kernels.tables import LANES, Launch, Segment, launches

CPU = torch.device("cpu")
FP32, BF16 = (torch.float32,), (torch.bfloat16,)


def plan(segments: list[Segment], unroll: int = 2, programs: int = 7, groups: int = 1) -> list[Launch]:
    return launches(tuple(segments), lambda: segments, CPU, unroll, programs, groups)


def test_chunks_cover_every_element_once() -> None:
    sizes = [1, 5000, 4096, 0, 1023]
    launch = plan([Segment((1,), size, FP32, parameter=index) for index, size in enumerate(sizes)])[0]
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
    segments = [Segment((8,), size, FP32, group=group) for size, group in ((9000, 2), (100, 0), (50_000, 2), (3, 0))]
    (launch,) = plan(segments, groups=4)
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
    found = plan(
        [
            Segment((16, 0), 64, FP32),
            Segment((16, 20), 64, FP32),
            Segment((16, 32), 63, FP32),
            Segment((16, 32), 64, BF16),
            Segment((16, 32), 64, FP32),
        ]
    )
    assert [(launch.vector, len(launch.parameters)) for launch in found] == [(4, 2), (1, 2), (8, 1)]
    # The same chunk, whatever the vector is.
    assert [launch.vector * launch.unroll for launch in found] == [8, 8, 16]


def test_the_same_tensors_make_nothing_new() -> None:
    calls: list[int] = []

    def once() -> list[Segment]:
        calls.append(1)
        return [Segment((16,), 8, FP32)]

    first = launches("the same", once, CPU, 1, 1)
    assert launches("the same", once, CPU, 1, 1) is first
    assert calls == [1]


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
    keys = {(rows.flat, rows.signature()) for rows in variants}
    assert len(keys) == len(variants)


def test_a_memo_forgets_the_least_recently_used() -> None:
    memo: Memo[int] = Memo(2)
    assert [memo(key, lambda key=key: key * 10) for key in (1, 2, 1, 3)] == [10, 20, 10, 30]
    assert memo.get(1) == 10
    assert memo.get(2) is None

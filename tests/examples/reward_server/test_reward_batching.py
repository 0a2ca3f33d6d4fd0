"""Requests joined to batches by one thread per reward."""

import threading
import time
from concurrent.futures import Future, wait

import pytest
import torch
from odd_rewards import Held, mean, picky
from serving import batch, expected, wait_for

from reward_server.batching import Batcher
from reward_server.limits import Refused


def busy_with(batcher: Batcher, reward: Held) -> Future:
    """Occupy the thread; what is submitted now waits."""
    first = batcher.submit(batch(1))
    wait_for(lambda: reward.calls)
    return first


def test_waiting_requests_are_joined_up_to_the_batch_size_and_split_again() -> None:
    reward = Held()
    batcher = Batcher("held", reward, batch_size=8)
    busy_with(batcher, reward)
    sent = [batch(3, seed=i) for i in range(5)]
    answers = [batcher.submit(part) for part in sent]
    reward.release()
    assert [answer.result(10) for answer in answers] == [expected(part) for part in sent]
    assert reward.calls == [1, 6, 6, 3]


def test_requests_that_arrive_within_the_window_are_joined() -> None:
    reward = Held()
    reward.release()
    batcher = Batcher("held", reward, batch_size=4, window=30.0)
    wait([batcher.submit(batch(1)), batcher.submit(batch(1)), batcher.submit(batch(2))], timeout=20)
    assert reward.calls == [4]


def test_a_request_above_the_batch_size_goes_alone_and_whole() -> None:
    reward = Held()
    batcher = Batcher("held", reward, batch_size=4)
    busy_with(batcher, reward)
    answers = [batcher.submit(batch(2)), batcher.submit(batch(9)), batcher.submit(batch(2))]
    reward.release()
    wait(answers, timeout=10)
    assert reward.calls == [1, 4, 9]


def test_images_of_different_sizes_are_never_joined() -> None:
    reward = Held()
    batcher = Batcher("held", reward, batch_size=16)
    busy_with(batcher, reward)
    sent = [batch(1, size) for size in (8, 9, 8, 9, 10)]
    answers = [batcher.submit(part) for part in sent]
    reward.release()
    assert [answer.result(10) for answer in answers] == [expected(part) for part in sent]
    assert reward.calls == [1, 2, 2, 1]


def test_a_bad_request_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    batcher = Batcher("picky", lambda *inputs: picky(*inputs) if gate.wait(10) else None, batch_size=16)
    sent = [
        batch(1, seed=i, prompts=[p]) for i, p in enumerate(["a", "bad", "nan", "crash", "exit", "infinite", "short"])
    ]
    answers = [batcher.submit(part) for part in sent]
    gate.set()
    assert [answers[0].result(10), answers[2].result(10)] == [expected(sent[0]), [None]]
    for i, status in {1: 422, 3: 500, 4: 500, 5: 500, 6: 500}.items():
        error = answers[i].exception(10)
        assert isinstance(error, Refused)
        assert error.status == status
        assert "secret" not in error.message
    assert "secret internals" in caplog.text
    assert "a prompt of this batch is bad" in answers[1].exception().message
    assert batcher.submit(sent[0]).result(10) == expected(sent[0])


def test_a_full_queue_refuses_until_there_is_room() -> None:
    reward = Held()
    batcher = Batcher("held", reward, batch_size=1, queue=2)
    busy_with(batcher, reward)
    waiting = [batcher.submit(batch(1)), batcher.submit(batch(1))]
    with pytest.raises(Refused, match="2 requests wait for 'held' already; try again"):
        batcher.submit(batch(1))
    waiting[0].cancel()
    assert len(batcher) == 1
    last = batcher.submit(batch(1))
    reward.release()
    assert last.result(10) == expected(batch(1))


def test_a_cancelled_request_costs_nothing() -> None:
    reward = Held()
    batcher = Batcher("held", reward, batch_size=1)
    busy_with(batcher, reward)
    cancelled, kept = batcher.submit(batch(3)), batcher.submit(batch(2))
    cancelled.cancel()
    reward.release()
    kept.result(10)
    assert reward.calls == [1, 2]


def test_closing_finishes_what_waits_and_takes_no_more() -> None:
    reward = Held()
    batcher = Batcher("held", reward, batch_size=1)
    answers = [batcher.submit(batch(1, seed=i)) for i in range(4)]
    threading.Timer(0.1, reward.release).start()
    batcher.close(10)
    assert all(answer.done() and len(answer.result()) == 1 for answer in answers)
    with pytest.raises(Refused, match="stopping"):
        batcher.submit(batch(1))


def test_a_reward_is_called_by_one_thread_without_gradients_on_8_bit_images() -> None:
    seen = []

    def reward(images: torch.Tensor, prompts: object, metadata: object) -> torch.Tensor:
        seen.append((threading.get_ident(), torch.is_grad_enabled(), images.is_contiguous(), images.dtype))
        time.sleep(0.001)
        return mean(images, prompts, metadata)

    batcher = Batcher("mean", reward, batch_size=2)
    threads = [threading.Thread(target=lambda: batcher.submit(batch(1)).result(10)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1
    assert seen[0][1:] == (False, True, torch.float32)
    assert batcher.served == 20

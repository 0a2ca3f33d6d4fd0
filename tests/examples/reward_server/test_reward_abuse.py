"""A thousand good and bad requests from several threads at one server."""

import random
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from bad_requests import LIMITS, BadBody, bodies
from serving import batch, command, expected, post

from reward_server import wire

TOKEN = "correct-horse"
BAD = list(bodies())


def resident(pid: int) -> int:
    """Bytes of memory that a process occupies."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def chunked(size: int) -> Iterator[bytes]:
    for _ in range(0, size, 10_000):
        yield b"a" * 10_000


def good(url: str, session: Any, dice: random.Random) -> str:
    count, size = dice.choice([1, 2, 5, 8]), dice.choice([8, 8, 100])
    prompts = [dice.choice(["a", "a", "nan"]) for _ in range(count)]
    sent = batch(count, size, seed=dice.randrange(10**6), prompts=prompts)
    form = dice.choice([wire.NPZ, wire.JSON])
    response = post(f"{url}/score/{dice.choice(['mean', 'picky'])}", wire.encode(sent, form), form, TOKEN)
    assert response.status_code == 200, response.text
    assert response.json()["scores"] == expected(sent)
    return "good"


def refused(response: requests.Response, status: int, name: str) -> str:
    assert response.status_code == status, (name, response.status_code, response.text)
    assert len(response.json()["error"]) > 10, name
    return name


def bad_body(url: str, session: requests.Session, dice: random.Random, case: BadBody | None = None) -> str:
    case = case or dice.choice(BAD)
    headers = {"Content-Type": case.content_type.encode("latin-1"), "Authorization": f"Bearer {TOKEN}"}
    response = session.post(f"{url}/score/mean", data=case.body, headers=headers, timeout=60)
    return refused(response, case.status, case.name)


def oversize(url: str, session: requests.Session, dice: random.Random) -> str:
    size = LIMITS.body + 1 + dice.randrange(LIMITS.body // 2)
    data = dice.choice([bytes(size), chunked(size)])
    headers = {"Content-Type": dice.choice([wire.NPZ, wire.JSON]), "Authorization": f"Bearer {TOKEN}"}
    return refused(session.post(f"{url}/score/mean", data=data, headers=headers, timeout=60), 413, "oversize")


def wrong_token(url: str, session: requests.Session, dice: random.Random) -> str:
    return refused(post(f"{url}/score/mean", BAD[0].body, token=dice.choice(["", "x", TOKEN[1:]])), 401, "token")


def unknown(url: str, session: requests.Session, dice: random.Random) -> str:
    name = dice.choice(["ocr", "..%2f..%2fetc", "%00", "a" * 5000, "\u6f22"])
    return refused(post(f"{url}/score/{name}", BAD[0].body, token=TOKEN), 404, "unknown")


def wrong_method(url: str, session: requests.Session, dice: random.Random) -> str:
    method = dice.choice(["GET", "PUT", "DELETE", "PATCH"])
    return refused(session.request(method, f"{url}/score/mean", data=b"a" * 1000, timeout=60), 405, "method")


def failing(url: str, session: requests.Session, dice: random.Random) -> str:
    prompt, status = dice.choice([("bad", 422), ("crash", 500), ("infinite", 500), ("short", 500), ("exit", 500)])
    body = wire.encode(batch(1, prompts=[prompt]), wire.NPZ)
    return refused(post(f"{url}/score/picky", body, token=TOKEN), status, "failing")


def rude(url: str, session: requests.Session, dice: random.Random) -> str:
    """Half a request, or none, then away; sometimes with a reset."""
    head = f"POST /score/mean HTTP/1.1\r\nHost: a\r\nContent-Type: {wire.NPZ}\r\nAuthorization: Bearer {TOKEN}\r\n"
    half = "Content-Length: 5000\r\n\r\n" + "a" * 999
    wrong = "Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    texts = [b"", b"\0" * 100, b"GET /health", *(f"{head}{rest}".encode() for rest in ("", half, wrong))]
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(dice.choice(texts))
        if dice.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "rude"


KINDS = [good] * 8 + [bad_body] * 7 + [oversize, wrong_token, unknown, wrong_method, failing, rude]


def abuse(url: str, seed: int, count: int, seen: Counter[str], errors: list[BaseException]) -> None:
    dice = random.Random(seed)
    try:
        with requests.Session() as session:
            for _ in range(count):
                seen[dice.choice(KINDS)(url, session, dice)] += 1
    except BaseException as error:
        errors.append(error)


def round_of(url: str, seed: int, count: int) -> Counter[str]:
    seen, errors = Counter(), []
    threads = [threading.Thread(target=abuse, args=(url, seed + i, count, seen, errors)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return seen


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of a process from /proc")
def test_a_thousand_good_and_bad_requests_leave_the_server_alive_exact_and_small() -> None:
    with command("mean", "picky", "--port", "0", "--small", token=TOKEN) as (url, process):
        threading.Thread(target=process.stdout.read, daemon=True).start()  # its log must not fill the pipe
        with requests.Session() as session:
            for case in BAD:
                bad_body(url, session, random.Random(0), case)
        round_of(url, 0, 60)  # the allocator's arenas fill
        before, files = resident(process.pid), len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        seen = round_of(url, 100, 200)
        assert seen.total() == 1000
        assert seen["good"] > 250
        assert len(seen) > 50
        assert process.poll() is None
        assert requests.get(f"{url}/health", timeout=10).json()["queue"] == {"mean": 0, "picky": 0}
        assert resident(process.pid) < before + 12 * 2**20
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) <= files + 8

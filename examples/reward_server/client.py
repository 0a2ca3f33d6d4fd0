"""One HTTP session with a reward server: which failures are tried again, and which are errors."""

import email.utils
import ipaddress
import os
import random
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

TOKEN_VARIABLE = "MARBLE_REWARD_TOKEN"
# What passes by itself: too slow an upload, too many requests, a proxy without its server, a full queue, a timeout.
PASSING = (408, 429, 502, 503, 504)


class Unavailable(Exception):
    """No answer after all attempts."""


@dataclass(frozen=True)
class Patience:
    """How long to insist: seconds for one attempt, attempts after the first, seconds before the second.

    Before attempt n the client sleeps ``backoff`` 2ⁿ⁻² seconds, times a random factor between 0.5 and 1.5, or what a
    ``Retry-After`` asks for, but at most ``timeout``. A hurried call is one attempt of at most ``hurry`` seconds.
    """

    timeout: float = 60.0
    retries: int = 3
    backoff: float = 0.5
    hurry: float = 5.0


class Connection:
    """Requests to the server at ``url``; ``token`` goes along as ``Authorization: Bearer``."""

    def __init__(self, url: str, token: str | None, patience: Patience) -> None:
        self.url, self.patience = check_url(url), patience
        self.session = requests.Session()
        # An auth of its own, also where there is no token: requests would send what it finds in ~/.netrc instead.
        self.session.auth = _Bearer(check_token(token) if token is not None else None)
        host = urlsplit(self.url).hostname or ""
        self.proxies = {"no_proxy": host} if is_loopback(host) else None

    def get(self, path: str) -> Any:
        """The JSON answer to GET; raises as ``post``."""
        return self._send("GET", path, False)

    def post(self, path: str, body: bytes, content_type: str, hurried: bool) -> Any:
        """The JSON answer to POST.

        Raises ``Unavailable`` where connections fail, time out or are answered by ``PASSING`` to the last attempt,
        ``ValueError`` with the server's words for any other 4xx, 3xx, or an answer that is not JSON, and
        ``RuntimeError`` for any other 5xx: the reward itself failed.
        """
        return self._send("POST", path, hurried, data=body, headers={"Content-Type": content_type})

    def _send(self, method: str, path: str, hurried: bool, **parts: Any) -> Any:
        patience = self.patience
        timeout = min(patience.timeout, patience.hurry) if hurried else patience.timeout
        attempts = 1 if hurried else 1 + patience.retries
        wait, reason = 0.0, ""
        for attempt in range(attempts):
            time.sleep(wait)
            wait = patience.backoff * 2**attempt * random.uniform(0.5, 1.5)
            try:
                response = self.session.request(
                    method,
                    self.url + path,
                    timeout=(min(timeout, 10.0), timeout),
                    allow_redirects=False,  # requests would repeat a POST as a GET
                    proxies=self.proxies,
                    **parts,
                )
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if response.status_code not in PASSING:
                return _answer(response)
            reason = f"{response.status_code}: {_message(response)}"
            wait = max(wait, min(_retry_after(response), timeout))
        raise Unavailable(f"{attempts} attempt{'s' * (attempts > 1)}, the last: {reason[:300]}")


def check_url(url: str) -> str:
    """The address without a slash at its end; ``ValueError`` says what is wrong with it."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of brackets and ports
        valid = False
    if not valid or any(character.isspace() for character in url):
        raise ValueError(f"{url!r} is not the address of a reward server: write http://host:port or https://host:port")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"the address of a reward server is http://host:port; a token goes into {TOKEN_VARIABLE}")
    return url.rstrip("/")


def check_token(token: str) -> str:
    """The token without white space around it; it must do as a header."""
    token = token.strip()
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError("a token consists of one or more printable ASCII characters, without spaces")
    return token


def token_of_environment() -> str | None:
    """The token in MARBLE_REWARD_TOKEN; None where the variable is missing."""
    return os.environ.get(TOKEN_VARIABLE)


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Bearer(requests.auth.AuthBase):
    def __init__(self, token: str | None) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token is not None:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _answer(response: requests.Response) -> Any:
    status = response.status_code
    if status >= 500:
        raise RuntimeError(f"{status}: {_message(response)}")
    if status >= 400:
        raise ValueError(f"{status}: {_message(response)}")
    if status != 200:
        raise ValueError(f"{status}, to {response.headers.get('Location')}: give the address that answers itself")
    try:
        return response.json()
    except ValueError:
        raise ValueError(f"not a reward server: its answer is not JSON but {response.text[:200]!r}") from None


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _retry_after(response: requests.Response) -> float:
    """The seconds in Retry-After, given as a number or as a date; 0 where there are none."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0

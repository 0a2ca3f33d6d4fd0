"""Serve rewards over HTTP, for a training run on another GPU or machine.

    python examples/serve_rewards.py ocr clipscore --device cuda:1 --port 18085 --options ocr.model=/weights/ocr
    python examples/serve_rewards.py --config rewards.yaml

The run then has url="http://127.0.0.1:18085" in the settings of these rewards. The server listens on this machine only;
on any other address it wants a token, from the environment variable MARBLE_REWARD_TOKEN or from --token-file, which the
run has in MARBLE_REWARD_TOKEN as well. A token is readable on the way unless TLS is used (--tls-certificate, --tls-key)
or the connection is tunnelled: ssh -L 18085:127.0.0.1:18085 machine. A certificate that you signed yourself goes into
REQUESTS_CA_BUNDLE of the run.
"""

import argparse
import logging
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

try:
    import uvicorn

    from reward_server.app import SHUTDOWN_SECONDS, create_app
    from reward_server.connection import Connection
except ImportError as error:
    raise SystemExit(f"error: {error}; a reward server needs: pip install fastapi uvicorn") from error
from reward_server.batching import Batcher
from reward_server.client import TOKEN_VARIABLE, check_token, is_loopback, token_of_environment
from reward_server.limits import MIB, Limits
from reward_server.settings import from_yaml, with_options
from rewards.registry import RewardSettings, build
from rewards.video_frames import takes_video

EXAMPLE = """\
try it:
    curl -sS {url}/health
    printf '{{"images": ["%s"], "prompts": ["a red circle"]}}' "$(base64 < image.png | tr -d '\\n')" |
        curl -sS {header}-H 'Content-Type: application/json' --data-binary @- {url}/score/{reward}
use it in a run: RewardSettings(url="{url}"){variable}
stop it with Ctrl-C or SIGTERM: requests that have arrived are finished"""


class Server(uvicorn.Server):
    """Says what to do next, once connections are accepted."""

    ready = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self.ready, flush=True)


def main() -> None:
    """Check the settings, take the address, load the rewards, serve until stopped."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = settings_of(arguments)
        limits = limits_of(arguments)
        listener = listen(arguments.host, arguments.port)
        token = token_of(arguments, listener.getsockname()[0])
        batchers = {name: load(name, chosen, arguments) for name, chosen in settings.items()}
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    config = uvicorn.Config(
        create_app(batchers, token, limits),
        http=Connection,
        ws="none",
        log_config=None,
        log_level="info" if arguments.verbose else "warning",
        timeout_keep_alive=60,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ssl_certfile=arguments.tls_certificate,
        ssl_keyfile=arguments.tls_key,
    )
    server = Server(config)
    server.ready = introduction(arguments, listener.getsockname()[1], settings, token)
    # uvicorn stops gracefully on these, and raises them once more when it is done: that is the end of this program.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listener])
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"stopped; {sum(batcher.served for batcher in batchers.values())} requests served")


def settings_of(arguments: argparse.Namespace) -> dict[str, RewardSettings]:
    """The settings of every reward: from the file, changed by what the command line gives."""
    if bool(arguments.rewards) == bool(arguments.config):
        raise ValueError("give either names of rewards or --config FILE; names: --help")
    given = {name: getattr(arguments, name) for name in ("device", "dtype", "batch_size")}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.config and given:
        raise ValueError(f"{', '.join(given)}: with --config these go into the file, reward by reward")
    settings = (
        from_yaml(arguments.config) if arguments.config else {n: RewardSettings(**given) for n in arguments.rewards}
    )
    for name, chosen in settings.items():
        if chosen.url:
            raise ValueError(f"{name!r} has a url: a server computes its rewards itself")
        if chosen.batch_size < 1:
            raise ValueError(f"{name!r}: batch_size must be at least 1, got {chosen.batch_size}")
        if chosen.frame_stride != 1:
            raise ValueError(f"{name!r}: the run chooses the frames of its videos, give frame_stride there")
    return with_options(settings, arguments.options)


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits, with room for the bodies that are allowed."""
    for name in ("queue", "max_body", "max_images"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    body, usual = arguments.max_body * MIB, Limits()
    decoded = max(usual.decoded, body)
    memory = max(usual.memory, 2 * decoded)
    return replace(usual, queue=arguments.queue, body=body, images=arguments.max_images, decoded=decoded, memory=memory)


def token_of(arguments: argparse.Namespace, address: str) -> str | None:
    """The token, from the file or the environment; ``ValueError`` where the address needs one and there is none."""
    token = arguments.token_file.read_text() if arguments.token_file else token_of_environment()
    if token is not None:
        return check_token(token)
    if not is_loopback(address):
        raise ValueError(
            f"{arguments.host} can be reached from other machines, so a token is needed: "
            f"export {TOKEN_VARIABLE}=$(python -c 'import secrets; print(secrets.token_urlsafe())') "
            f"here and in the run, or give --token-file"
        )
    return None


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address: taken before the rewards are loaded, so that a taken port shows at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another --host or --port"
        ) from error
    return listener


def load(name: str, settings: RewardSettings, arguments: argparse.Namespace) -> Batcher:
    """Build a reward, and start the thread that it is called by."""
    started = time.perf_counter()
    reward = build(name, settings)
    if takes_video(reward):
        raise ValueError(f"{name!r} takes videos, and a server is sent images: let the run compute it")
    print(f"{name} ready on {settings.device} after {time.perf_counter() - started:.1f} s", flush=True)
    return Batcher(name, reward, settings.batch_size, queue=arguments.queue)


def introduction(
    arguments: argparse.Namespace, port: int, settings: Mapping[str, RewardSettings], token: str | None
) -> str:
    """What the server says when it is ready."""
    scheme = "https" if arguments.tls_certificate else "http"
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(arguments.host, arguments.host)
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    secret = f"$(cat {arguments.token_file})" if arguments.token_file else f"${TOKEN_VARIABLE}"
    example = EXAMPLE.format(
        url=url,
        reward=next(iter(settings)),
        header=f'-H "Authorization: Bearer {secret}" ' if token else "",
        variable=f", with {TOKEN_VARIABLE} set" if token else "",
    )
    return f"serving {', '.join(settings)} on {url}, {'with a token' if token else 'no token needed'}\n{example}"


def port(text: str) -> int:
    """A port, from the command line."""
    if not 0 <= (number := int(text)) < 2**16:
        raise ValueError
    return number


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Limits()
    parser.add_argument("rewards", nargs="*", help="names in rewards/registry.py: ocr, clipscore, colour, ...")
    parser.add_argument("--config", type=Path, help="YAML file: the fields of RewardSettings by name of reward")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="REWARD.OPTION=VALUE", help="options of the rewards"
    )
    parser.add_argument("--device", help="where all rewards run (default: cpu)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--batch-size", type=int, help="images that requests are joined to (default: 16)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=18085, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--token-file", type=Path, help=f"file with the token (default: {TOKEN_VARIABLE})")
    parser.add_argument("--tls-certificate", help="PEM file; the server then speaks https")
    parser.add_argument("--tls-key", help="PEM file")
    parser.add_argument(
        "--queue", type=int, default=defaults.queue, help="requests that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--max-body", type=int, default=defaults.body >> 20, help="MiB of a request (default: %(default)s)"
    )
    parser.add_argument("--max-images", type=int, default=defaults.images, help="of a request (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="log every request")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""The words of ``unigrpo serve-rewards``; FastAPI and uvicorn are imported when it runs."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ...rewards._service import is_this_machine
from ...terminal import say


SERVE = """examples, in two terminals:
  unigrpo serve-rewards quickstart
  unigrpo train quickstart rewards.0.name=remote \\
    rewards.0.args.url=http://127.0.0.1:8000/score/math_correctness

RECIPE may hold nothing but `rewards`. Each is at /score/NAME, as the reward
`remote` asks; /health and /metrics say how the server is. Who asks must send
the value of UNIGRPO_REWARD_TOKEN, where it is set, as a bearer token: give
`remote` api_key_env: UNIGRPO_REWARD_TOKEN.

It needs FastAPI and uvicorn: pip install 'unigrpo[serve]'.
"""

GRACE = 30
"""Seconds that requests may still take when the server is told to end."""


def serve_rewards_arguments(serve: argparse.ArgumentParser) -> None:
    """The words of ``unigrpo serve-rewards``."""
    serve.epilog = SERVE
    serve.usage = "unigrpo serve-rewards RECIPE [KEY=VALUE ...] [options]"
    serve.add_argument("recipe", metavar="RECIPE", help="a YAML file with rewards, or a shipped recipe")
    serve.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe")
    serve.add_argument("--host", default="127.0.0.1", help="who may ask (default: 127.0.0.1, this machine alone)")
    serve.add_argument("--port", type=_whole(0), metavar="N", default=8000, help="0: a free one (default: 8000)")
    token = "UNIGRPO_REWARD_TOKEN"
    serve.add_argument("--token-env", metavar="NAME", default=token, help="variable that holds the token")
    serve.add_argument("--queue", type=_whole(0), metavar="N", default=16, help="requests that may wait (16)")
    serve.add_argument("--concurrency", type=_whole(1), metavar="N", default=1, help="scored at a time (1)")
    serve.add_argument("--max-rows", type=_whole(1), metavar="N", default=4096, help="of a request (4096)")
    serve.add_argument("--max-megabytes", type=_whole(1), metavar="N", default=64, help="of a request (64)")


def _whole(least: int) -> Callable[[str], int]:
    """A reader of whole numbers of at least ``least``."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return number


def run_serve_rewards(arguments: argparse.Namespace) -> int:
    """``unigrpo serve-rewards RECIPE``: answers until Ctrl-C or SIGTERM."""
    check_packages()
    token = read_token(arguments.token_env, arguments.host)
    from ..commands import quiet_bars
    from ..reach import code_of, sources_of
    from .served import load_served, served_rewards

    quiet_bars()
    recipe = load_served(arguments.recipe, arguments.overrides)
    for line in (*code_of(recipe), *sources_of(recipe)):
        say(f"  {line}")
    functions = served_rewards(recipe)
    limits = {"queue": arguments.queue, "concurrency": arguments.concurrency, "max_rows": arguments.max_rows}
    with listening(arguments.host, arguments.port) as place:
        host, port = place.getsockname()[:2]
        for name in functions:
            say(f"{name}: http://{f'[{host}]' if ':' in host else host}:{port}/score/{name}")
        held = f"the token in {arguments.token_env}" if token else "no token, for this machine alone"
        say(f"{held} (Ctrl-C ends it)")
        timeout = recipe.config.get("reward_timeout", 600.0)
        serve(functions, place, token, max_bytes=arguments.max_megabytes * 2**20, timeout=timeout, **limits)
    return 0


def serve(functions: Any, place: socket.socket, token: str, *, max_bytes: int, **limits: Any) -> None:
    """Answers on a socket that listens, until a signal."""
    import uvicorn

    from .app import build_app
    from .scorer import Scorer

    app = build_app(Scorer(functions, **limits), token=token, max_bytes=max_bytes)
    quiet = {"log_level": "warning", "access_log": False, "server_header": False}
    uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=GRACE, **quiet)).run(sockets=[place])


def check_packages(needed: Sequence[str] = ("fastapi", "uvicorn")) -> None:
    """Raises ``ValueError`` where a package is missing."""
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise ValueError("unigrpo serve-rewards needs FastAPI and uvicorn: pip install 'unigrpo[serve]'")


def read_token(variable: str, host: str) -> str:
    """The token in an environment variable; empty where it is not set.

    Raises:
        ValueError: it is needed, or holds what no header can.
    """
    token = os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            f"the environment variable {variable} holds characters that no token has, such as spaces: set it again"
        )
    if not token and not is_this_machine(host):
        raise ValueError(
            f"--host {host} lets other machines ask: put a token into the environment variable {variable}, here and where "
            f"the run is, and give the reward `remote` api_key_env: {variable}"
        )
    return token


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ValueError: there is none to be had.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {host} --port {port} cannot be listened on ({error}): name another port") from None

"""The server itself: who may ask, what is read, what it says of itself. FastAPI is imported here and nowhere else."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from ...errors import check_choice
from ...rewards._service import is_this_machine
from .rows import Refused
from .scorer import Scorer


READ_SECONDS = 60.0
"""For the whole body of a request, however slowly it comes."""

METRICS = {
    "calls": ("counter", "requests that were answered with scores"),
    "rows": ("counter", "rows of these requests"),
    "none": ("counter", "rows among them that the reward does not apply to"),
    "seconds": ("counter", "seconds of scoring"),
    "failures": ("counter", "requests for which the reward failed"),
    "refused": ("counter", "requests that could not be read, or were too large"),
    "busy": ("counter", "requests that were told to come again"),
    "abandoned": ("counter", "requests that nobody waited for when their turn came"),
}
"""What is counted for each reward, its type and its sentence in Prometheus' text."""


COUNTED = (400, 408, 413, 415)
"""Statuses that count as ``refused``."""


def build_app(scorer: Scorer, *, token: str = "", max_bytes: int = 64 * 2**20) -> FastAPI:
    """The routes ``/score``, ``/score/NAME``, ``/health`` and ``/metrics``.

    Args:
        token: what ``Authorization: Bearer`` must hold for all but ``/health``; empty: nothing, and only this machine may ask.
        max_bytes: of the body of one request.
    """
    app = FastAPI(title="unigrpo rewards", docs_url=None, redoc_url=None, openapi_url=None)
    names = list(scorer.functions)

    def check_sender(request: Request) -> None:
        """Raises ``Refused`` for a request without the token, or without one for a page of another machine."""
        if not token:
            # A page in a browser may have any name lead to this machine, and then asks under that name.
            for header, least in (("Host", ""), ("Origin", "http://localhost")):
                if not is_this_machine(host_of(request.headers.get(header, least))):
                    raise Refused(
                        403, f"the header {header} names another machine: without a token only this one may ask"
                    )
        given = request.headers.get("Authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Refused(
                401, "the token is missing or wrong: send `Authorization: Bearer TOKEN` (api_key_env of `remote`)"
            )

    def chosen(name: str | None) -> str:
        """The reward that ``/score/NAME`` or ``/score`` asks for; raises ``Refused`` where it is none, or not the only one."""
        if name is None:
            if len(names) > 1:
                where = ", ".join(f"/score/{own}" for own in names)
                raise Refused(404, f"this server has several rewards: post to one of {where}")
            return names[0]
        try:
            check_choice("reward", name, tuple(names))
        except ValueError as error:
            raise Refused(404, str(error)) from None
        return name

    @app.post("/score/{name}")
    @app.post("/score")
    async def score(request: Request, name: str | None = None) -> JSONResponse:
        own, begun = None, False
        try:
            check_sender(request)
            own = chosen(name)
            async with scorer.admitted(own):
                begun = True
                data = await read(request, max_bytes)
                return JSONResponse(await scorer.scored(own, data, request.is_disconnected))
        except Refused as refused:
            if own is not None and refused.status in COUNTED:
                scorer.counts["refused", own] += 1
            if not begun:
                # A body that nobody reads looks like a broken connection to who sends it.
                await read(request, 0, keep=False)
            raise

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "rewards": names, "held": scorer.held}

    @app.get("/metrics")
    async def metrics(request: Request) -> PlainTextResponse:
        check_sender(request)
        return PlainTextResponse(exposition(scorer), media_type="text/plain; version=0.0.4")

    say_faults(app)
    return app


def say_faults(app: FastAPI) -> None:
    """What becomes of a request that is refused, or that asks for a place that is not there: one sentence as JSON."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        headers = {} if error.wait is None else {"Retry-After": str(error.wait)}
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_such_thing(request: Request, error: HTTPException) -> JSONResponse:
        where = "POST to /score or /score/NAME; GET /health and /metrics"
        return JSONResponse(
            {"error": f"{request.method} {request.url.path}: {error.detail}. {where}"}, error.status_code
        )


def host_of(header: str) -> str:
    """The host that a header ``Host`` or ``Origin`` names; empty where it names none."""
    try:
        return urlsplit(header if "//" in header else f"//{header}").hostname or ""
    except ValueError:
        return ""


async def read(request: Request, most: int, keep: bool = True) -> bytes:
    """The body of a request, up to ``most`` bytes; what is longer is read to its end and let go.

    Raises:
        Refused: it is longer, no JSON by its own words, or does not come to an end in time.
    """
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size <= most:
                    body += piece
    except TimeoutError:
        raise Refused(408, f"the request was not complete within {READ_SECONDS:g} s") from None
    if not keep:
        return b""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        # A page in a browser can send anything else to a server on this machine without being asked.
        raise Refused(415, "the request must have `Content-Type: application/json`")
    if size > most:
        raise Refused(
            413, f"the request has {size} bytes, and at most {most} are taken: set batch_size of the reward `remote`"
        )
    return bytes(body)


def exposition(scorer: Scorer) -> str:
    """What the server has done, in Prometheus' text format."""
    lines = []
    for what, (kind, said) in METRICS.items():
        lines += [f"# HELP unigrpo_reward_{what}_total {said}", f"# TYPE unigrpo_reward_{what}_total {kind}"]
        lines += [
            f'unigrpo_reward_{what}_total{{reward="{own}"}} {scorer.counts[what, own]}' for own in scorer.functions
        ]
    lines += ["# HELP unigrpo_requests_held requests that wait or are scored", "# TYPE unigrpo_requests_held gauge"]
    return "\n".join([*lines, f"unigrpo_requests_held {scorer.held}", ""])

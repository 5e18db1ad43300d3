"""The words of ``unigrpo app``; Gradio is imported when it runs."""

from __future__ import annotations

import argparse
import importlib.util
import os
import threading

from ...terminal import say


APP = """examples:
  unigrpo app                        builtin:shapes: chat, draw, ask
  unigrpo app builtin:arithmetic_trained temperature=0.5 seed=3
  unigrpo app --adapter runs/lora    base and adapter side by side

It needs Gradio: pip install 'unigrpo[app]'.
Keys of the page: temperature, steps, max_completion_length, block_length,
guidance_scale, seed. Keys of loading: dtype, policy, image_tokenizer.
"""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def app_arguments(app: argparse.ArgumentParser) -> None:
    """The words of ``unigrpo app``."""
    app.epilog = APP
    app.usage = "unigrpo app [MODEL] [KEY=VALUE ...] [options]"
    app.add_argument(
        "overrides",
        nargs="*",
        metavar="MODEL",
        help="hub id, folder, adapter folder or builtin:NAME (default: builtin:shapes)",
    )
    app.add_argument("--adapter", metavar="DIR", help="an adapter, which answers beside its base from the same seed")
    app.add_argument(
        "--host", default="127.0.0.1", help="who can open the page (default: 127.0.0.1, this machine alone)"
    )
    app.add_argument("--port", type=int, metavar="N", default=7860, help="default: 7860")


def run_app(arguments: argparse.Namespace) -> int:
    """``unigrpo app``: serves the page until Ctrl-C."""
    models = [word for word in arguments.overrides if "=" not in word]
    if len(models) > 1:
        raise ValueError(f"unigrpo app: give one model, not {models}")
    check_gradio()
    from ..commands import quiet_bars
    from .policy import DEFAULT, opened

    quiet_bars()
    keys = [word for word in arguments.overrides if "=" in word]
    if not models and not arguments.adapter:
        say(f"no model is named: this is {DEFAULT}, which ships with the package")
    talker = opened(models[0] if models else None, arguments.adapter, keys)
    from .page import serve

    served = serve(talker, arguments.host, arguments.port)
    if arguments.host not in LOOPBACK:
        say(f"--host {arguments.host}: everybody who reaches this port may use the policy")
    say(f"{talker.name} answers at {served.local_url} (Ctrl-C ends it)")
    try:
        threading.Event().wait()
    finally:
        served.close(verbose=False)
    return 0


def check_gradio() -> None:
    """Raises ``ValueError`` where Gradio is missing; before its import it is told to report nothing."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("unigrpo app needs Gradio: pip install 'unigrpo[app]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

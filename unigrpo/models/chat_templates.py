"""A chat as text, by a template that can come from anywhere."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from ..errors import Overdue
from ..terminal import middle_out
from ..threads import in_thread, result_of
from .checkpoint_files import first_line
from .trial import taken_by


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
"""One newline after each header. The template stored with LLaDA's tokenizer has two, so it is never relied on."""

PATIENCE = 10.0
"""Seconds for one chat in a template from elsewhere; honest ones take well under a millisecond."""

LONGEST = 2**20
"""Characters that a template may put around a chat; honest ones put some hundreds, and thousands for tools."""

CURE = "replace chat_template in processor_config.json, or in the tokenizer's files"

PROGRAM = r"""
import datetime, re
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

def refuse(text):
    raise ValueError(text)

# Marks of what is trained, which the sandbox here does not know, change nothing of the text.
template = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", given)
world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
world.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
try:
    world.from_string(template).render(messages=[{"role": "user", "content": "2 + 3 ="}], add_generation_prompt=True)
except MemoryError:
    raise
except Exception:
    pass
"""


def render_chat(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """``tokenizer.apply_chat_template`` as text. A template can come from anywhere: it may loop, or fill the memory.

    Raises:
        ValueError: it takes longer than ``PATIENCE``, fails, or writes more than ``LONGEST`` characters around the chat.
    """
    render = partial(tokenizer.apply_chat_template, messages, tokenize=False, **options)
    template = options.get("chat_template") or getattr(tokenizer, "chat_template", None)
    if template == CHAT_TEMPLATE:
        return render()
    if isinstance(template, str):
        _check_template(template, PATIENCE)
    try:
        text = result_of(in_thread(render), seconds=PATIENCE)
    except Overdue:
        raise ValueError(
            f"the chat template takes more than {PATIENCE:g} s for one chat, so it loops without an end in sight: {CURE}"
        ) from None
    except Exception as error:
        # Jinja's own, and whatever else a template makes Python raise.
        shown = middle_out(repr(messages))
        raise ValueError(
            f"the chat template cannot write {shown} ({type(error).__name__}: {first_line(error)}): give a chat that it takes, or {CURE}"
        ) from error
    if not text:
        raise ValueError(f"the chat template writes nothing for {middle_out(repr(messages))}: {CURE}")
    if len(text) > LONGEST + sum(len(str(message)) for message in messages):
        raise ValueError(f"the chat template writes {len(text):,} characters for {middle_out(repr(messages))}: {CURE}")
    return text


@cache
def _check_template(template: str, seconds: float) -> None:
    """Raises ``ValueError`` for a template that takes too long, or too much, for a short chat."""
    if taken := taken_by(PROGRAM, template, seconds):
        raise ValueError(f"the chat template takes {taken} for one short chat: {CURE}")

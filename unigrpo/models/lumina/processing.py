"""Prompts of Lumina-DiMOO: what the system says by task, and what the user says, in tags that are tokens."""

from __future__ import annotations

from typing import Any

from ...types import SPANS, is_picture, spans_of
from ..processing import MMaDAProcessor, Prompt


TAGS = ("<system>", "</system>", "<user>", "</user>")

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</{{ message['role'] }}>{% endfor %}"
)

SYSTEM = {
    "mmu": (
        "You are a multimodal model that can process both text and images. Answer the following question based on the provided "
        "images. Analyze each image and combine relevant details to answer."
    ),
    "t2i": "Generate an image according to the text prompt.",
    **dict.fromkeys(
        ("i2i", "r2i", *SPANS["r2i"]),
        "Generate an image applying the following editing instruction based on the original image.",
    ),
}
"""What the model was tuned to be told; a chat's own system message takes its place."""


class LuminaProcessor(MMaDAProcessor):
    """Turns prompts into ids; arguments are those of ``MMaDAProcessor``. A caption gets no instruction to think first.

    Raises:
        ValueError: a tokenizer without the tags.
    """

    @classmethod
    def usual_template(cls, tokenizer: Any) -> str:
        """That of the tags. The template stored with the tokenizer is LLaDA's, so it is never relied on."""
        return TEMPLATE

    @classmethod
    def prepared(cls, tokenizer: Any) -> Any:
        """As it is."""
        missing = [tag for tag in TAGS if tag not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(
                f"the tokenizer has no tokens {missing}, which Lumina-DiMOO's prompts need: use the checkpoint's own"
            )
        return tokenizer

    def instruction(self, task: str) -> str:
        """As in ``MMaDAProcessor``; none where a picture is made."""
        return "" if is_picture(spans_of(task)[-1]) or task in SPANS["r2i"] else super().instruction(task)

    def chat_text(self, prompt: Prompt, task: str = "mmu") -> str:
        """``<system>..</system><user>..</user>``. A string is what the user says.

        Raises:
            ValueError: a chat of other messages than one of the user, and a system message before it.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        roles = [message["role"] for message in messages]
        if roles == ["user"]:
            messages = [{"role": "system", "content": SYSTEM.get(task, SYSTEM["mmu"])}, *messages]
        elif roles != ["system", "user"]:
            raise ValueError(
                f"prompt has messages of {roles}: Lumina-DiMOO was tuned on one user message, with a system message before it at most"
            )
        return super().chat_text(messages, task)

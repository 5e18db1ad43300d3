"""Prompts of decoders: the tokenizer's own chat template, and tokenizers whose class is code of the checkpoint's folder."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Tokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ..processing import MMaDAProcessor


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of tokenizers that know its tokens and bring none."""

OF_QWEN = ("DreamTokenizer",)
"""Classes in folders of checkpoints that are Qwen2's tokenizer, with more added tokens."""


class DecoderProcessor(MMaDAProcessor):
    """Turns prompts into ids by the checkpoint's own template; arguments are those of ``MMaDAProcessor``.

    Raises:
        ValueError: there is no chat template.
    """

    @classmethod
    def usual_template(cls, tokenizer: Any) -> str:
        """The tokenizer's own; without one, that of ``<|im_start|>`` where the tokenizer knows it."""
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, dict):
            own = own.get("default")
        if own:
            return own
        if "<|im_start|>" in tokenizer.get_vocab():
            return CHATML
        raise ValueError(
            "the tokenizer has no chat template, and none can be guessed from its tokens: set tokenizer.chat_template, or "
            "chat_template in its tokenizer_config.json"
        )

    @classmethod
    def prepared(cls, tokenizer: Any) -> Any:
        """As it is."""
        return tokenizer

    @classmethod
    def load_tokenizer(cls, path: Any, **kwargs: Any) -> Any:
        """The tokenizer of a folder or an id. Dream's class is code in its folder; Qwen2's reads the same files."""
        found = {name: value for name, value in kwargs.items() if name != "trust_remote_code"}
        if get_tokenizer_config(path, **found).get("tokenizer_class") in OF_QWEN:
            return Qwen2Tokenizer.from_pretrained(path, **found)
        return super().load_tokenizer(path, **kwargs)

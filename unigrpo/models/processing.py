"""MMaDA's processor: tokenizer, chat template and the optional instruction to think first."""

from __future__ import annotations

import copy
import inspect
import json
import re
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from ..terminal import middle_out
from .chat_templates import CHAT_TEMPLATE, render_chat


THINK_PROMPT = (
    "Reason about the question step by step before you answer. Write the reasoning between <think> and </think>, "
    "then write the final answer after it.\n"
)
"""Default instruction of ``think_prompt=True`` for answers in text."""

THINK_DRAW_PROMPT = "Before you draw, describe the picture in more detail between <think> and </think>. Then draw what you described.\n"
"""Default instruction of ``think_prompt=True`` for a thought before a picture (task ``r2i``)."""

THINK_PROMPTS = {
    "mmada": (
        "You should first think about the reasoning process in the mind and then provide the user with the answer. The "
        "reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> answer here\n",
        "You should first think out a more detailed version of the description and then provide the user with the image. The "
        "detailed description is enclosed within <think> </think> tags, i.e. <think> detailed description here </think> image here\n",
    ),
}
"""Instructions by name, for text and for ``r2i``: those that MMaDA's public code writes before questions and captions."""

CHAT_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

Prompt = str | list[dict[str, Any]]


def prompt_text(prompt: Prompt) -> str:
    """The words of a prompt: a string, or what the user says in a chat, without roles and image placeholders."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(content_text(m["content"]) for m in prompt if m["role"] == "user")


def content_text(content: str | list[dict[str, Any]]) -> str:
    """A message's text; of a list of parts the text parts, because an image always stands before the chat."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


@lru_cache(maxsize=8)
def _marks(tokenizer: Any, _length: int) -> tuple[str, ...]:
    """What the tokenizer reads as one token with a meaning of its own wherever it stands in a text: a mask, the end of a turn.

    Letters and digits alone are words, whatever a tokenizer lists them as.
    """
    added = [own.content for own in tokenizer.added_tokens_decoder.values() if own.special]
    return tuple(own for own in added if not own.isalnum())


def check_words(tokenizer: Any, text: str) -> None:
    """Raises ``ValueError`` for words of a prompt that would become marks: half of a character, or a special token of the tokenizer."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt {middle_out(text)!r} holds {text[error.start]!r}, half of a character: read it with errors='replace', or mend it"
        ) from error
    for mark in _marks(tokenizer, len(tokenizer)):
        if mark in text:
            raise ValueError(
                f"prompt {middle_out(text)!r} holds {mark!r}, which the tokenizer reads as a mark of its own and not as words: "
                "leave it out of the row, or write it with a space in it"
            )


def name_for_transformers_4(folder: str | Path, **settings: Any) -> None:
    """Rewrites a saved ``tokenizer_config.json`` under the names that transformers 4 and 5 both know, and adds ``settings`` to it."""
    file = Path(folder, "tokenizer_config.json")
    settings = {**json.loads(file.read_text(encoding="utf-8")), **settings}
    if settings["tokenizer_class"] == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")


def settle_template(policy: Any, values: Any) -> Any:
    """``policy`` with a copy of its processor that hands ``values``, a mapping, to the chat template; None leaves it alone.

    Raises:
        ValueError: a processor without a template, and values that its template does not read or cannot take.
    """
    if values is None:
        return policy
    processor, said = copy.copy(policy.processor), f"chat_template_kwargs={values}"
    if not hasattr(processor, "chat_template_kwargs"):
        raise ValueError(
            f"{said}: the {type(processor).__name__} of {type(policy).__name__} writes prompts without a chat template; leave it out"
        )
    set_here = {"messages", *inspect.signature(processor.tokenizer.apply_chat_template).parameters}
    for name in values:
        if name in set_here - {"tools", "documents"}:
            raise ValueError(f"{said}: {name!r} is what the processor itself says; leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", processor.chat_template):
            raise ValueError(
                f"{said}: the chat template does not read {name!r}; leave it out, or give the processor a template that does"
            )
    chat = [{"role": "user", "content": "2 + 3 ="}]
    render = partial(render_chat, processor.tokenizer, chat, chat_template=processor.chat_template)
    try:
        render(add_generation_prompt=True, **values)
    except ValueError as error:
        why = error.__cause__ or error
        raise ValueError(f"{said}: the chat template cannot take them ({type(why).__name__}: {why})") from error
    processor.chat_template_kwargs = values
    policy.processor = processor
    return policy


def _with_chat_tokens(tokenizer: Any) -> Any:
    missing = [token for token in CHAT_TOKENS if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer


class MMaDAProcessor(ProcessorMixin):
    """Turns prompts into token ids.

    Args:
        tokenizer: the checkpoint's tokenizer.
        chat_template: Jinja template; None = the library's one-newline template.
        think_prompt: None or False = nothing, True = ``THINK_PROMPT``, for ``r2i`` ``THINK_DRAW_PROMPT``, a name in
            ``THINK_PROMPTS``, or a text for all tasks; placed before the last user message.
        chat_template_kwargs: what the template reads beside the messages, by name; saved with the processor.
    """

    def __init__(
        self,
        tokenizer=None,
        chat_template: str | None = None,
        think_prompt: str | bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.think_prompt = think_prompt or None
        self.chat_template_kwargs = chat_template_kwargs
        super().__init__(tokenizer, chat_template=chat_template or self.usual_template(tokenizer))

    @classmethod
    def usual_template(cls, tokenizer: Any) -> str:
        """The template of a processor that is given none."""
        return CHAT_TEMPLATE

    @classmethod
    def prepared(cls, tokenizer: Any) -> Any:
        """A published checkpoint's bare tokenizer, with what prompts need of it."""
        return _with_chat_tokens(tokenizer)

    @classmethod
    def load_tokenizer(cls, path: Any, **kwargs: Any) -> Any:
        """The tokenizer of a folder or an id."""
        return AutoTokenizer.from_pretrained(path, **{"trust_remote_code": False, **kwargs})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any) -> MMaDAProcessor:
        """Loads a saved processor, or builds one around a published checkpoint's bare tokenizer.

        The tokenizer of LLaDA-8B-Base lacks the three chat tokens, which follow its last id; they are added.
        """
        think_prompt = kwargs.pop("think_prompt", None)
        # None, as AutoProcessor gives it, would ask on standard input whether code of the folder may run.
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        saved, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if saved.get("processor_class") != cls.__name__:
            # A template beside a bare tokenizer is the tokenizer's own, which has two newlines.
            saved = {}
        return cls(
            cls.prepared(cls.load_tokenizer(pretrained_model_name_or_path, **kwargs)),
            chat_template=saved.get("chat_template"),
            think_prompt=saved.get("think_prompt") if think_prompt is None else think_prompt,
            chat_template_kwargs=saved.get("chat_template_kwargs"),
        )

    @classmethod
    def around(cls, given: Any) -> Any:
        """A processor around the tokenizer that is ``given``, as ``from_pretrained`` makes it; a processor as it is.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(given, PreTrainedTokenizerBase):
            return cls(cls.prepared(given))
        if not hasattr(given, "encode_prompt"):
            raise ValueError(
                f"processing_class={given!r}: give a tokenizer or a {cls.__name__}, or leave it out for the one saved beside the model"
            )
        return given

    def instruction(self, task: str) -> str:
        """What is written before the last user message of a prompt of ``task``; empty for nothing."""
        if not self.think_prompt:
            return ""
        usual = (THINK_PROMPT, THINK_DRAW_PROMPT)
        named = usual if self.think_prompt is True else THINK_PROMPTS.get(str(self.think_prompt))
        return str(self.think_prompt) if named is None else named[task == "r2i"]

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers; what it writes opens in transformers 4 too, which knows neither the tokenizer's class of 5, nor
        a list of ``extra_special_tokens``, nor a template in a file of its own.
        """
        written = super().save_pretrained(save_directory)
        name_for_transformers_4(save_directory, chat_template=self.chat_template)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return written

    def words_ids(self, text: str) -> list[int]:
        """Token ids of words of a prompt.

        Raises:
            ValueError: they hold a special token, or half of a character.
        """
        check_words(self.tokenizer, text)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def chat_text(self, prompt: Prompt, task: str = "text") -> str:
        """The prompt of ``task`` through the chat template, ready for the assistant's answer. A string is one user message."""
        messages = (
            [{"role": "user", "content": prompt}]
            if isinstance(prompt, str)
            else [{**message, "content": content_text(message["content"])} for message in prompt]
        )
        if not messages:
            raise ValueError("prompt=[] holds no message; give a string or at least one message")
        instruction = self.instruction(task)
        if instruction:
            last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
            if last is None:
                raise ValueError(
                    f"think_prompt needs a user message, the prompt has roles {[m['role'] for m in messages]}"
                )
            messages[last]["content"] = instruction + messages[last]["content"]
        options = {"chat_template": self.chat_template, "add_generation_prompt": True}
        return render_chat(self.tokenizer, messages, **options, **(self.chat_template_kwargs or {}))

    def encode_prompt(self, prompt: Prompt, task: str = "text") -> list[int]:
        """Token ids of ``chat_text``.

        Raises:
            ValueError: a message holds a special token, or half of a character.
        """
        for message in [{"content": prompt}] if isinstance(prompt, str) else prompt:
            check_words(self.tokenizer, f"{message.get('role', '')}\n{content_text(message['content'])}".lstrip())
        return self.tokenizer(self.chat_text(prompt, task), add_special_tokens=False)["input_ids"]

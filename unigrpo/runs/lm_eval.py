"""``unigrpo lm-eval``: our policies as a model of EleutherAI's lm-evaluation-harness (extra ``lm-eval``), whose command line goes on from here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ..algorithm.likelihood import score_tokens
from ..config.build import build_algorithms
from ..config.settings import LENGTHS
from ..rollout.pipeline import Pipeline, evaluating
from ..rollout.sample import sample_answers
from ..samplers import Block, SemiAutoregressive
from ..terminal import tracked
from ..training.evaluation import eval_pipeline
from ..training.held_out_loss import bound_draw
from ..types import Canvas, keyed_generator
from .evaluate.policy import load_pipeline, open_source


NAME = "unigrpo"
COMMANDS = ("run", "ls", "validate")
BLOCK = 32
"""Of text whose length only the task says."""


@register_model(NAME)
class UniGRPOLM(LM):
    """A policy that answers the harness's requests. Each context is the user's message in the policy's own chat template.

    ``generate_until`` samples as ``unigrpo evaluate`` does, and cuts at the first of the task's ``until``. An answer has the positions that
    ``max_completion_length`` says, else the checkpoint, else the task's ``max_gen_toks``.

    ``loglikelihood`` is the evidence bound of LLaDA (arXiv 2502.09992, Eq. 6): the mean over ``draws`` of (n / l) sum of log p of l hidden
    tokens of n, l uniform, at noise that depends on the request alone. It is a lower bound, not the likelihood: options of equal length
    compare well, and others as far as the bound is equally tight. ``is_greedy`` is whether greedy decoding of as many positions, the surest
    token first, gives the continuation.

    Args:
        path: a model or recipe as in ``unigrpo evaluate``.
        draws: noise draws of the bound, at least 1.
        overrides: keys of sampling, ``seed`` ...

    Raises:
        ValueError: what ``open_source`` refuses, or several processes.
    """

    def __init__(
        self,
        path: str,
        *,
        draws: int = 128,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("unigrpo lm-eval answers in one process: start it without a launcher")
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"model_args draws={draws!r} must be a whole number from 1 on")
        size = [f"per_device_eval_batch_size={batch_size}"] if str(batch_size).isdecimal() else []
        on_cpu = ["use_cpu=true"] if device == "cpu" else []
        self._words = [*size, *on_cpu, *(f"{key}={value}" for key, value in overrides.items())]
        self._path, self.draws = path, draws
        self.source = open_source(path, self._words)
        self.pipe = load_pipeline(self.source, ["text"])
        # A checkpoint's own lengths hold where none of them is given, as everywhere.
        usual = None if overrides.keys() & set(LENGTHS) else getattr(self.source.config(), "sampling_defaults", None)
        self._lengths = "max_completion_length" in overrides or bool(usual)
        self._block = int(overrides.get("block_length") or BLOCK)

    @property
    def tokenizer_name(self) -> str:
        return self._path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Raises ``ValueError``: the policy puts its own around each context."""
        raise ValueError("the policy puts its own chat template around each context: leave out --apply_chat_template")

    # ---- answers ----

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """The answer to each context, up to the first text of its ``until``."""
        answers: list[str] = [""] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._sampling(request.args[1]), []).append(place)
        for (length, temperature), places in groups.items():
            pipe = self._pipe(length, temperature)
            size = pipe.args.per_device_eval_batch_size
            batches = [places[start : start + size] for start in range(0, len(places), size)]
            for batch in batches if disable_tqdm else tracked(batches, "answering", error=True):
                rows = [{"prompt": requests[place].args[0], "task": "text"} for place in batch]
                samples = sample_answers(pipe, rows, 0, indices=batch, stream="lm-eval")
                for place, sample in zip(batch, samples, strict=True):
                    answers[place] = cut(sample.completion, requests[place].args[1].get("until") or ())
                    self.cache_hook.add_partial("generate_until", requests[place].args, answers[place])
        return answers

    def _sampling(self, options: dict[str, Any]) -> tuple[int | None, float | None]:
        """Positions and temperature that a request asks for; None = those of the policy."""
        wanted = options.get("max_gen_toks") or options.get("max_new_tokens")
        length = None if self._lengths or not wanted else -(-int(wanted) // self._block) * self._block
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else None
        return length, temperature

    def _pipe(self, length: int | None, temperature: float | None) -> Pipeline:
        lengths: dict[str, int] = {} if length is None else {"max_completion_length": length, "steps": length}
        if lengths and self.pipe.policy.block_size is None:
            lengths["block_length"] = BLOCK
        more = lengths | ({} if temperature is None else {"temperature": temperature})
        if not more:
            return self.pipe
        source = open_source(self._path, [*(f"{key}={value}" for key, value in more.items()), *self._words])
        own = replace(self.pipe, args=source.args, algorithms=build_algorithms(source.args))
        return eval_pipeline(own)

    # ---- likelihoods ----

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The bound on each continuation's log-probability in nats, and whether greedy decoding gives it.

        The space between context and continuation is the template's matter, and left out.

        Raises:
            ValueError: a policy without a mask id, or a continuation without a token.
        """
        if self.pipe.policy.mask_token_id is None:
            raise ValueError(
                f"{type(self.pipe.policy).__name__} has no mask id, so no evidence bound: give tasks that generate"
            )
        found = []
        with evaluating(self.pipe.model):
            for request in requests if disable_tqdm else tracked(requests, "scoring", error=True):
                context, continuation = request.args
                canvas = self._canvas(context, continuation)
                found.append((self.bound(canvas, (context, continuation)), self._greedy(canvas)))
                self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def _canvas(self, context: str, continuation: str) -> Canvas:
        """Context and continuation, which stands where the answer is written; B = 1."""
        policy = self.pipe.policy
        ids = policy.processor.tokenizer.encode(continuation.lstrip(), add_special_tokens=False)
        if not ids:
            raise ValueError(f"the continuation {continuation!r} has no token")
        canvas = policy.encode([{"prompt": context}], "text", max_completion_length=len(ids))
        written = canvas.ids.masked_scatter(canvas.fill_mask, torch.tensor(ids, dtype=canvas.ids.dtype))
        return replace(canvas, ids=written)

    def bound(self, canvas: Canvas, key: Sequence[str]) -> float:
        """The evidence bound on log p of the answer on ``canvas`` (B = 1), in nats."""
        draws = [
            bound_draw(canvas.fill_mask[0], draw, self.draws, ("lm-eval", *key, draw)) for draw in range(self.draws)
        ]
        size, total = self.pipe.args.per_device_eval_batch_size, 0.0
        for start in range(0, self.draws, size):
            own = draws[start : start + size]
            hidden, weight = (torch.stack([getattr(draw, name) for draw in own]) for name in ("hidden", "weight"))
            several = canvas.take(torch.zeros(len(own), dtype=torch.int64)).to(self.pipe.device)
            hidden = hidden.to(self.pipe.device)
            with torch.no_grad():
                logps = score_tokens(self.pipe.model, self.pipe.policy, several, hidden, hidden).logps
            total += float((torch.where(hidden, logps, 0.0).double().cpu() * weight).sum())
        return total / self.draws

    def _greedy(self, canvas: Canvas) -> bool:
        count = int(canvas.fill_mask.sum())
        in_blocks = self.pipe.policy.block_size is not None
        sampler = Block(steps=count) if in_blocks else SemiAutoregressive(steps=count, block_length=count)
        sampler = replace(sampler, temperature=0.0)
        empty = torch.where(canvas.fill_mask, self.pipe.policy.mask_token_id, canvas.ids)
        blank = replace(canvas, ids=empty).to(self.pipe.device)
        rollout = sampler(self.pipe.model, self.pipe.policy, blank, generators=[keyed_generator("lm-eval", "greedy")])
        return bool((rollout.canvas.ids.cpu() == canvas.ids).all())

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Raises ``ValueError``: a perplexity over sliding windows conditions from left to right, which a masked policy does not."""
        raise ValueError(
            "loglikelihood_rolling (perplexity of whole texts) is for models that write from left to right: choose tasks that generate or "
            "compare options"
        )


def cut(text: str, until: str | Sequence[str]) -> str:
    """``text`` before the first of ``until`` that comes in it."""
    ends = [until] if isinstance(until, str) else list(until)
    places = [text.find(end) for end in ends if end and end in text]
    return text[: min(places)] if places else text


def run(words: Sequence[str]) -> int:
    """The harness's own command line with our model: ``--model unigrpo`` is added, unless another one is named."""
    from lm_eval.__main__ import cli_evaluate

    command, rest = (words[0], list(words[1:])) if words[:1] and words[0] in COMMANDS else ("run", list(words))
    if command == "run" and not any(word.split("=")[0] in ("--model", "-M") for word in rest):
        rest = ["--model", NAME, *rest]
    before, sys.argv = sys.argv, ["lm-eval", command, *rest]
    try:
        cli_evaluate()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.argv = before
    return 0

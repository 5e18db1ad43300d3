"""The names that people type when they ask for answers, those of transformers and diffusers, as the library's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import torch

from ..config.trl_keys import OTHER_NAMES, cure_of
from ..errors import check_choice
from ..parts import choose
from ..samplers import Block, EntropyBound, samplers_for
from ..types import is_picture, spans_of
from .thoughts import TOGETHER, Together


TASK_SAMPLERS = {
    **dict.fromkeys(("text", "mmu"), "semi_autoregressive"),
    **dict.fromkeys(("t2i", "r2i", "i2i"), "maskgit"),
}

SAME = {"max_new_tokens": "max_completion_length", "num_inference_steps": "steps"}
"""Their name of something -> ours."""

ELSEWHERE = {
    "max_length": "it would count the prompt: give max_completion_length (or max_new_tokens), which counts the answer alone",
    "num_beams": "a canvas is filled in any order and has no beams: leave it out",
    "generation_config": "give its values one by one",
    "stopping_criteria": "an answer ends at the policy's stop tokens: leave it out",
    "streamer": "tokens are not written from left to right: on_step(done, total) tells of the progress",
    "pad_token_id": "the policy says it: leave it out",
    "eos_token_id": "the policy says it: leave it out",
    "use_cache": 'give kv_cache="prefix" or "dual"; sampler "block" keeps its own',
}
"""What people type that has no meaning here, and the cure."""


def in_own_names(options: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """``named`` with what ``options`` say of it in other words, which are taken out of ``options``.

    ``do_sample`` False is a temperature of 0, True one of 1 unless a temperature is given. A ``generator`` gives the seed.

    Raises:
        ValueError: one thing is said twice, or in two ways that disagree.
    """
    found = dict(named)
    for theirs, own in SAME.items():
        value = options.pop(theirs, None)
        if value is not None and found[own] is not None:
            raise ValueError(f"{theirs}={value} and {own}={found[own]} are one thing: give one of them")
        found[own] = found[own] if value is None else value
    sampled, temperature = options.pop("do_sample", None), found["temperature"]
    if sampled is not None and temperature is not None and bool(sampled) != bool(temperature):
        raise ValueError(f"do_sample={sampled} and temperature={temperature} disagree: 0 is greedy; give one of them")
    if sampled is not None and temperature is None:
        found["temperature"] = float(bool(sampled))
    generator = options.pop("generator", None)
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"generator={generator!r} is no torch.Generator; give one, or seed=0")
        if found["seed"] is not None:
            raise ValueError(f"generator and seed={found['seed']} are given: give one of them")
        found["seed"] = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return found


def sampler_of(
    task: str,
    sampler: str | None,
    named: dict[str, Any],
    block_length: int | None,
    options: dict[str, Any],
    usual: dict[str, Any],
    own: Iterable[str],
    in_blocks: bool = False,
    has_mask: bool = True,
) -> tuple[Callable, int]:
    """The sampler of ``task`` with all ``options``, and the positions of a text answer.

    Args:
        named: ``max_completion_length``, ``steps`` and ``temperature``, None where they were not given.
        usual: the checkpoint's, for text.
        own: the names that ``generate`` takes.
        in_blocks: whether the policy's attention is block-causal: then text is written by the block sampler,
            or without a mask id (``has_mask``) by ``entropy_bound``, at temperature 1 and its own steps unless others are given.

    Raises:
        ValueError: an option that the sampler does not have.
    """
    length = named["max_completion_length"] or usual.get("max_completion_length", 256)
    steps, temperature = named["steps"], named["temperature"]
    settings: dict[str, Any] = {"steps": steps or 16, "temperature": 1.0 if temperature is None else temperature}
    if not is_picture(spans_of(task)[-1]):
        settings = {
            "steps": steps or usual.get("steps", length),
            "block_length": block_length or usual.get("block_length", min(32, length)),
            "temperature": temperature or 0.0,
        }
    default = TASK_SAMPLERS[task]
    if in_blocks and task in ("text", "mmu"):
        default = "block" if has_mask else "entropy_bound"
    choice = choose("sampler", sampler or default, samplers_for(spans_of(task)[-1]))
    if choice.part is Block:
        settings["block_length"] = block_length
    if choice.part is EntropyBound:
        given = {"steps": steps or usual.get("steps"), "temperature": temperature}
        settings = {key: value for key, value in given.items() if value is not None}
    known = [item.name for item in fields(choice.part)]
    check_options(options, known, own, choice.name)
    return choice.part(**{key: value for key, value in settings.items() if key in known}, **options), length


def check_options(options: Iterable[str], known: Iterable[str], own: Iterable[str], sampler: str) -> None:
    """Raises ``ValueError`` for the first of ``options`` that is no field of the sampler (``known``).

    ``own`` are the further names that ``generate`` takes.
    """
    known = list(known)
    for name in options:
        if name in known:
            continue
        near = difflib.get_close_matches(name, [*known, *own, *SAME, "do_sample", "generator"], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        cure = ELSEWHERE.get(name) or (cure_of(name) if OTHER_NAMES.get(name) in (*known, *own) else None)
        raise ValueError(f"sampler {sampler!r} has no option {name!r}: {cure or f'{hint}it has {known}'}")


def check_decoding(r2i_decoding: str, task: str, thoughts: Any) -> None:
    """Raises ``ValueError`` for an unknown way, and for thoughts that would have to be written together with their pictures."""
    check_choice("r2i_decoding", r2i_decoding, ("thought_first", *TOGETHER))
    if r2i_decoding in TOGETHER and (task != "r2i" or thoughts is not None):
        raise ValueError(
            f"r2i_decoding={r2i_decoding!r} writes a thought together with its picture: it belongs to task 'r2i' without thoughts given; leave it out"
        )


def together(thought: Any, picture: Any, r2i_decoding: str) -> Together:
    """The sampler of both. In parallel the picture, whose ``steps`` were given for both, takes no more of them than fit."""
    if r2i_decoding == "parallel" and hasattr(thought, "steps") and hasattr(picture, "steps"):
        most = thought.steps - thought.steps // 4
        picture = replace(picture, steps=min(picture.steps, most))
    return Together(thought, picture, r2i_decoding)


def one_a_prompt(name: str, given: Any, count: int) -> list[Any]:
    """``given`` as a list of ``count``, one a prompt; what is no list holds for all.

    Raises:
        ValueError: a list of another length.
    """
    found = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(found) != count:
        raise ValueError(f"{len(found)} {name} for {count} prompts; give one a prompt, or one for all")
    return found

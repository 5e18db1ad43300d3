"""The auxiliary masked-denoising (SFT) term: given answers that hold the model together while rewards move it.

LaViDa-R1 and MMaDA's training mix it in where a KL alone lets high-entropy tokens drift. An answer's loss is
-(1/n) sum_t (n/l) log p(token) over the l hidden of n tokens, l uniform on 1..n: LLaDA's SFT loss (arXiv 2502.09992).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithm.loss import PolicyLoss
from ..algorithm.noising import RandomNoising
from ..algorithm.surrogates import LogLikelihood
from ..config.arguments import UniGRPOConfig
from ..data.given import as_text
from ..data.image_codes import ImageCodec
from ..data.rows import image_of, task_of
from ..models.base import DiffusionPolicy
from ..rollout.pipeline import Pipeline
from ..rollout.sample import canvas_arguments, check_prompt, image_size, prompt_images
from ..types import SPANS, Canvas, Experience, Rollout, keyed_generator
from .batches import Unit, collate, cut_units, pad_units, score_batch, unit_draws
from .experience import corrupted, unpack


NOISING = RandomNoising(weighting="inverse_probability")
LOSS = PolicyLoss(surrogate=LogLikelihood(), length_normalization="completion")


def demonstrations(pipe: Pipeline, dataset: Any, micro_step: int) -> tuple[list[Experience], list[Unit]]:
    """This rank's given answers for one micro-step, noised, and their units; every rank gets the same number.

    They are numbered over the ranks and micro-steps of an optimizer step, and drawn and noised by their number.
    """
    count, every = pipe.args.sft_batch_size, pipe.args.gradient_accumulation_steps
    step, part = divmod(micro_step, every)
    generator = keyed_generator("demonstrations", pipe.args.seed, step)
    drawn = torch.randint(len(dataset), (count * every * pipe.ranks,), generator=generator).tolist()
    first = (pipe.rank * every + part) * count
    experiences = []
    for number in range(first, first + count):
        row = dataset[drawn[number]]
        rollout = written(pipe.policy, pipe.args, pipe.codec, row)
        key = (pipe.args.seed, step)
        noise = NOISING(rollout, num_iterations=1, num_samples=1, key=("demonstration", *key), rows=[number])
        noise = corrupted(pipe.policy, noise, rollout, ("demonstration", *key, number))
        experiences.append(unpack(rollout, noise, number, 1.0, 0.0, pipe.policy.attends_padding))
    draws = [unit_draws(own) for own in experiences]
    units = cut_units(experiences, draws, [list(range(count))], pipe.policy)
    everyone = pipe.gather(torch.tensor([len(units[0])], device=pipe.device))
    if len(everyone) > 1:
        units = pad_units(units, [int(everyone.max())], experiences)
    return experiences, units[0]


def demonstration_loss(pipe: Pipeline, model: Any, experiences: list[Experience], unit: Unit) -> tuple[Tensor, Tensor]:
    """The unit's share of the optimizer step's auxiliary loss, times ``sft_weight``, and each answer's own, detached."""
    batch = collate(experiences, unit, 0, pipe.policy, pipe.device)
    scores = score_batch(model, pipe.policy, batch)
    losses = LOSS(replace(batch, old_logps=scores.logps.detach(), ref_logps=None), scores).losses
    nominal = pipe.args.sft_batch_size * pipe.args.gradient_accumulation_steps
    return pipe.args.sft_weight * (losses * batch.scale).sum() / nominal, losses.detach()


def written(policy: DiffusionPolicy, args: UniGRPOConfig, codec: ImageCodec | None, row: dict[str, Any]) -> Rollout:
    """The row's canvas with its given answer in it, the tail padded as after a rollout."""
    task = task_of(row)
    coded, _ = prompt_images(policy, args, codec, [row], task)
    canvas = policy.encode(coded, task, **canvas_arguments(args, policy, codec, task))
    return fill(canvas, answer_ids(policy, args, codec, row), policy.pad_token_id)


def fill(canvas: Canvas, answer: Tensor, pad: int) -> Rollout:
    """A canvas of one row with ``answer [n]`` written from the left."""
    places = canvas.fill_mask[0].nonzero().squeeze(1)
    ids, counts = canvas.ids.clone(), torch.zeros_like(canvas.fill_mask)
    ids[0, places] = pad
    ids[0, places[: len(answer)]] = answer
    counts[0, places[: len(answer)]] = True
    return Rollout(
        canvas=replace(canvas, ids=ids),
        completion_mask=counts,
        step_map=torch.full_like(ids, -1),
        sampling_logps=torch.zeros(ids.shape),
        completions=[None],
    )


def answer_ids(policy: DiffusionPolicy, args: UniGRPOConfig, codec: ImageCodec | None, row: dict[str, Any]) -> Tensor:
    """Ids of the given answer: the ``completion`` text with a stop token where one fits, or the codes of ``image``."""
    task = task_of(row)
    if task == "t2i":
        size = image_size(args, policy, task)
        transform = row.get("image_transform") or args.for_task(task).image_transform
        picture = image_of(row, f"a given answer to {str(row['prompt'])[:60]!r}")
        return codec.encode([picture], size, [transform])[0] + policy.token_space(task).start
    room = args.for_task(task).max_completion_length
    ids = policy.answer_ids(as_text(row["completion"]))
    return torch.tensor([*ids, *policy.stop_token_ids[-1:]][:room] if len(ids) <= room else ids, dtype=torch.int64)


def check_given(row: dict[str, Any], where: str) -> None:
    """Raises ``ValueError`` naming row and column where a given answer is missing; needs no policy."""
    if task_of(row) in SPANS:
        raise ValueError(
            f"{where}: rows of task {task_of(row)!r} are no part of the auxiliary loss; train on them with `unigrpo sft`, "
            "objective think_then_draw"
        )
    if task_of(row) == "i2i":
        raise ValueError(
            f"{where}: rows of task 'i2i' are no part of the auxiliary loss: leave them out of sft_dataset"
        )
    if task_of(row) == "t2i":
        image_of(row, where)
        return
    text = as_text(row.get("completion"))
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{where}['completion']={text!r} must be the answer's text; name your column so, or drop the row"
        )


def check_demonstration(
    policy: DiffusionPolicy, args: UniGRPOConfig, codec: ImageCodec | None, row: dict[str, Any], where: str
) -> None:
    """Raises ``ValueError`` naming row and column for a given answer that cannot be written."""
    check_given(row, where)
    check_prompt(policy, args, codec, row, where)
    task = task_of(row)
    if task == "t2i":
        return
    ids, room = answer_ids(policy, args, codec, row), args.for_task(task).max_completion_length
    if len(ids) > room:
        raise ValueError(
            f"{where}['completion'] has {len(ids)} tokens, max_completion_length={room} fit: raise it or shorten the text"
        )
    outside = ids[~policy.token_space(task).contains(ids)].tolist()
    if outside:
        raise ValueError(f"{where}['completion'] holds tokens {outside[:5]} that task {task!r} cannot write")

"""From prompts to training data: sample groups, score them, compare within the group, draw noise, score the noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .advantages import Advantages, group_advantages
from .algorithms import Algorithm, check_task_sampler
from .codec import ImageCodec
from .config import UniGRPOConfig
from .data import image_of, task_of
from .likelihood import score_tokens
from .metrics import Metrics, completion_metrics, reward_metrics, task_metrics
from .models.base import DiffusionPolicy
from .rewarding import Answer, RewardSet
from .rng import keyed_generator
from .types import TASKS, Experience, Noise, Rollout
from .units import Unit, collate, cut_units, pad_units


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What ``make_experience`` works with.

    Attributes:
        model: the module to call (wrapped or not).
        policy, args, rewards: its description, the run's arguments, the rewards.
        algorithms: the algorithm of each task.
        reference: context that yields the module to call as the reference policy; needed where beta > 0.
        gather: concatenates a ``[n, ...]`` tensor over ranks.
        new_prompt: dataset row for (window, round, group); needed for refills.
        rank, device: this process.
        on_step: progress of sampling, ``on_step(done, total)``.
        codec: the image tokenizer; needed for ``mmu`` and ``t2i`` rows.
    """

    model: Any
    policy: DiffusionPolicy
    args: UniGRPOConfig
    rewards: RewardSet
    algorithms: dict[str, Algorithm]
    reference: Callable[[], AbstractContextManager] | None = None
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
    new_prompt: Callable[[int, int, int], dict[str, Any]] | None = None
    rank: int = 0
    device: torch.device | str = "cpu"
    on_step: Callable[[int, int], None] | None = None
    trainer_state: Any = None
    codec: ImageCodec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sampled row: its dataset row, its rollout (B = 1), its place in the global window, its prompt's pictures.

    ``scores`` are the raw rewards ``[F]`` of a held-out answer, scored with its batch.
    """

    row: dict[str, Any]
    rollout: Rollout
    index: int
    images: list[Image.Image] | None = None
    scores: Tensor | None = None

    @property
    def answer(self) -> Answer:
        ids = self.rollout.canvas.ids[self.rollout.completion_mask].tolist()
        return Answer(
            row=self.row,
            completion=self.rollout.completions[0],
            completion_ids=ids,
            task=self.rollout.canvas.task,
            images=self.images,
        )


@dataclass(slots=True, kw_only=True)
class Window:
    """All rows of one rollout on this rank, cut into units by micro-batch.

    Attributes:
        rows: training data in sampling order.
        order: the shuffled row indices that micro-batches are cut from.
        micro_batches: ``steps_per_generation`` lists of units.
        table: the window's answers as columns, for the completions table; empty after a resume.
    """

    rows: list[Experience]
    order: list[int]
    micro_batches: list[list[Unit]]
    table: dict[str, list] = field(default_factory=dict)


def make_experience(pipe: Pipeline, prompts: list[dict[str, Any]], window: int, metrics: Metrics) -> Window:
    """One window of training data for this rank's ``prompts``, each of which stands G times in a row.

    Everything that an update needs is drawn here, before the first update of the window: noise for all inner updates,
    and the old and reference log-probabilities on it.
    """
    with metrics.timed("time/rollout"):
        samples = sample_answers(pipe, prompts, window)
    with metrics.timed("time/reward"):
        scores = score_answers(pipe, samples, metrics)
    advantages = compare(pipe, scores)
    for attempt in range(pipe.args.refill_rounds):
        if not bool(advantages.equal.any()):
            break
        samples, scores = refill(pipe, samples, scores, advantages, window, attempt, metrics)
        advantages = compare(pipe, scores)
    local = local_slice(pipe, len(samples))
    reward_metrics(metrics, pipe.rewards.names, scores, advantages, pipe.args.num_generations)
    task_metrics(metrics, [sample.rollout.canvas.task for sample in samples], advantages.rewards[local])
    completion_metrics(metrics, [sample.rollout for sample in samples], pipe.policy.stop_token_ids)
    rows = [
        unpack(pipe, sample, draw_noise(pipe, sample, window), advantage, reward)
        for sample, advantage, reward in zip(
            samples, advantages.values[local].tolist(), advantages.rewards[local].tolist(), strict=True
        )
    ]
    result = cut_window(pipe, rows, window)
    with metrics.timed("time/old_and_reference"):
        add_old_and_reference(pipe, result)
    result.table = answer_table(pipe, samples, scores[local], advantages.values[local])
    return result


def sample_answers(
    pipe: Pipeline,
    prompts: list[dict[str, Any]],
    window: int,
    *,
    indices: list[int] | None = None,
    stream: str = "sample",
) -> list[Sample]:
    """Answers to ``prompts`` in order, one a row; ``indices`` are the rows' global numbers (default: this rank's)."""
    if indices is None:
        start = pipe.rank * len(prompts)
        indices = list(range(start, start + len(prompts)))
    samples: list[Sample | None] = [None] * len(prompts)
    for task in TASKS:
        members = [i for i, row in enumerate(prompts) if task_of(row) == task]
        if not members:
            continue
        algorithm = pipe.algorithms[task]
        rows, images = prompt_images(pipe, [prompts[i] for i in members], task)
        canvas = pipe.policy.encode(rows, task, **canvas_arguments(pipe.args, pipe.policy, pipe.codec, task))
        generators = [keyed_generator(stream, pipe.args.seed, window, indices[i]) for i in members]
        with evaluating(pipe.model):
            rollout = algorithm.sampler(
                pipe.model, pipe.policy, canvas.to(pipe.device), on_step=pipe.on_step, generators=generators
            )
        if task == "t2i":
            size = image_size(pipe.args, pipe.policy, task)
            rollout = replace(rollout, completions=pipe.codec.decode(rollout.completions, size))
        for place, i in enumerate(members):
            own = rollout.take(torch.tensor([place]))
            samples[i] = Sample(row=prompts[i], rollout=own, index=indices[i], images=images[place])
    return samples


def image_size(args: UniGRPOConfig, policy: DiffusionPolicy, task: str) -> int | list[int]:
    """The run's image size, else the checkpoint's."""
    return args.for_task(task).image_size or policy.image_size


def prompt_images(
    pipe: Pipeline, rows: list[dict[str, Any]], task: str
) -> tuple[list[dict[str, Any]], list[list[Image.Image] | None]]:
    """Rows with the codes of their picture, as ``policy.encode`` reads them, and the pictures for the rewards."""
    if task != "mmu":
        return rows, [None] * len(rows)
    read: dict[Any, Image.Image] = {}
    images = []
    for row in rows:
        # The rows of a group are copies of one dataset row: its picture is decoded once and shared.
        source = _picture_source(row)
        if source not in read:
            read[source] = image_of(row, f"a row with prompt {str(row['prompt'])[:60]!r}")
        images.append(read[source])
    transforms = [row.get("image_transform") or pipe.args.for_task(task).image_transform for row in rows]
    codes = pipe.codec.encode(images, image_size(pipe.args, pipe.policy, task), transforms)
    coded = [{**row, "image_codes": own} for row, own in zip(rows, codes, strict=True)]
    return coded, [[image] for image in images]


def _picture_source(row: dict[str, Any]) -> Any:
    value = row["image"] if row.get("image") is not None else row["images"][0]
    value = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value
    return value if isinstance(value, str | bytes) else id(value)


def canvas_arguments(
    args: UniGRPOConfig, policy: DiffusionPolicy, codec: ImageCodec | None, task: str
) -> dict[str, Any]:
    """The arguments of ``policy.encode`` for ``task``."""
    settings = args.for_task(task)
    shared = {"max_prompt_length": settings.max_prompt_length, "prompt_truncation": settings.prompt_truncation}
    if task != "t2i":
        return {**shared, "max_completion_length": settings.max_completion_length}
    count = codec.count(image_size(args, policy, task))
    return {**shared, "image_tokens": count, "trim_padding": args.trim_padding}


def check_prompt(
    policy: DiffusionPolicy,
    args: UniGRPOConfig,
    codec: ImageCodec | None,
    row: dict[str, Any],
    where: str,
    held_out: bool = False,
) -> None:
    """Raises ``ValueError`` naming the row for a prompt that does not fit, or a task that the run cannot do."""
    task = task_of(row)
    check_task_sampler(args, task, where, held_out)
    if task != "text" and codec is None:
        raise ValueError(f"{where}: task {task!r} needs image_tokenizer, and {type(policy).__name__} names none")
    if task == "mmu":
        # Codes cost a forward of the tokenizer; for the length their number is enough.
        row = {**row, "image_codes": torch.zeros(codec.count(image_size(args, policy, task)), dtype=torch.int64)}
    try:
        policy.encode([row], task, **canvas_arguments(args, policy, codec, task))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Eval mode for the block: adapter dropout in a rollout would put noise into every ratio."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def score_answers(pipe: Pipeline, samples: list[Sample], metrics: Metrics) -> Tensor:
    """Raw rewards of all ranks' rows, ``[B_global, F]``."""
    scores = pipe.rewards.score([sample.answer for sample in samples], pipe.trainer_state)
    for name, values in pipe.rewards.metrics.items():
        metrics.add(name, sum(values) / len(values))
    return pipe.gather(scores.to(pipe.device)).cpu()


def compare(pipe: Pipeline, scores: Tensor) -> Advantages:
    """Group-relative advantages of all ranks' rows."""
    args = pipe.args
    weights = torch.tensor(pipe.rewards.weights, dtype=torch.float32)
    return group_advantages(
        scores, weights, args.num_generations, args.scale_rewards, args.multi_objective_aggregation
    )


def local_slice(pipe: Pipeline, count: int) -> slice:
    """This rank's rows in a gathered tensor."""
    return slice(pipe.rank * count, (pipe.rank + 1) * count)


def refill(
    pipe: Pipeline,
    samples: list[Sample],
    scores: Tensor,
    advantages: Advantages,
    window: int,
    attempt: int,
    metrics: Metrics,
) -> tuple[list[Sample], Tensor]:
    """Groups of equal rewards replaced by fresh prompts; every rank draws the same ones."""
    group = pipe.args.num_generations
    stale = [i for i, sample in enumerate(samples) if bool(advantages.equal[sample.index])]
    metrics.add("refilled_groups", float(advantages.equal.float().sum()) / group)
    fresh = [pipe.new_prompt(window, attempt, samples[i].index // group) for i in stale]
    indices = [samples[i].index for i in stale]
    with metrics.timed("time/rollout"):
        again = sample_answers(pipe, fresh, window, indices=indices, stream=f"refill-{attempt}")
    local = scores[local_slice(pipe, len(samples))].clone()
    new_scores = pipe.rewards.score([sample.answer for sample in again], pipe.trainer_state)
    samples = list(samples)
    for place, i in enumerate(stale):
        samples[i], local[i] = again[place], new_scores[place]
    return samples, pipe.gather(local.to(pipe.device)).cpu()


def draw_noise(pipe: Pipeline, sample: Sample, window: int) -> Noise:
    """The row's corruption for all inner updates, ``[1, K, S, L]``."""
    algorithm = pipe.algorithms[sample.rollout.canvas.task]
    return algorithm.noising(
        sample.rollout,
        num_iterations=pipe.args.num_iterations,
        num_samples=algorithm.settings.num_noise_samples,
        key=(pipe.args.seed, window),
        rows=[sample.index],
    )


def unpack(pipe: Pipeline, sample: Sample, noise: Noise, advantage: float, reward: float) -> Experience:
    """One row on the CPU, without its padding where padding is masked anyway."""
    rollout, canvas = sample.rollout, sample.rollout.canvas
    keep = slice(None) if pipe.policy.attends_padding else canvas.attention_mask[0].cpu().nonzero().squeeze(1)

    def row(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[0].cpu()[..., keep].clone()

    return Experience(
        ids=row(canvas.ids),
        attention_mask=row(canvas.attention_mask),
        fill_mask=row(canvas.fill_mask),
        completion_mask=row(rollout.completion_mask),
        hidden=row(noise.hidden),
        target=row(noise.target),
        weight=row(noise.weight),
        input_ids=row(noise.input_ids),
        sampling_logps=row(rollout.sampling_logps),
        step_map=row(rollout.step_map),
        position_ids=row(canvas.position_ids),
        extra=canvas.extra,
        advantage=advantage,
        active=reward == reward,
        task=canvas.task,
        token_space=canvas.token_space,
        index=sample.index,
    )


def cut_window(pipe: Pipeline, rows: list[Experience], window: int) -> Window:
    """Rows shuffled, dealt to micro-batches and cut into units; every rank gets the same number of units."""
    generator = keyed_generator("order", pipe.args.seed, window, pipe.rank)
    return rebuild_window(pipe, rows, torch.randperm(len(rows), generator=generator).tolist())


def rebuild_window(pipe: Pipeline, rows: list[Experience], order: list[int]) -> Window:
    """The window of ``rows`` in a known ``order``; a resume and a fresh window share this path."""
    steps = pipe.args.steps_per_generation
    size = len(order) // steps
    dealt = [order[step * size : (step + 1) * size] for step in range(steps)]
    betas = {task: algorithm.settings.beta for task, algorithm in pipe.algorithms.items()}
    units = cut_units(rows, dealt, pipe.policy, betas)
    counts = torch.tensor([[len(unit) for unit in units]], device=pipe.device)
    everyone = pipe.gather(counts)
    if len(everyone) > 1:
        units = pad_units(units, everyone.amax(dim=0).clamp(min=1).tolist(), rows)
    return Window(rows=rows, order=order, micro_batches=units)


@torch.no_grad()
def add_old_and_reference(pipe: Pipeline, window: Window, always_old: bool = False) -> None:
    """Old and reference log-probabilities on the window's own noise and units.

    Units that are used before the first optimizer step of the window need no old pass: there old = new. ``always_old``
    computes it all the same.
    """
    moved_after = pipe.args.gradient_accumulation_steps
    for row in window.rows:
        row.old_logps = torch.zeros_like(row.weight)
        row.old_known = torch.zeros(row.weight.shape[0], dtype=torch.bool)
    for k in range(pipe.args.num_iterations):
        for step, units in enumerate(window.micro_batches):
            for unit in units:
                if always_old or k > 0 or step >= moved_after:
                    _score_into(pipe, window, unit, k, pipe.model, "old_logps")
    # The exact KL compares whole distributions, which are made anew beside each update and never kept.
    with_reference = {
        task
        for task, algorithm in pipe.algorithms.items()
        if algorithm.settings.beta > 0 and algorithm.settings.kl_estimator != "exact"
    }
    if not any(row.task in with_reference for row in window.rows):
        return
    with pipe.reference() as model:
        for row in window.rows:
            row.ref_logps = torch.zeros_like(row.weight) if row.task in with_reference else None
        for k in range(pipe.args.num_iterations):
            for units in window.micro_batches:
                for unit in units:
                    if window.rows[unit.rows[0]].task in with_reference:
                        _score_into(pipe, window, unit, k, model, "ref_logps")


def _score_into(pipe: Pipeline, window: Window, unit: Unit, k: int, model, name: str) -> None:
    batch = collate(window.rows, unit, k, pipe.policy, pipe.device)
    settings = pipe.algorithms[batch.canvas.task].settings
    with evaluating(model):
        scores = score_tokens(
            model,
            pipe.policy,
            batch.canvas,
            batch.hidden,
            batch.target,
            batch.noisy_ids,
            settings.temperature,
            settings.likelihood_guidance,
        )
    if unit.dummy:
        return
    for place, index in enumerate(unit.rows):
        row = window.rows[index]
        getattr(row, name)[k, unit.draw] = scores.logps[place, : len(row.ids)].cpu()
        if name == "old_logps":
            row.old_known[k] = True


def answer_table(pipe: Pipeline, samples: list[Sample], scores: Tensor, advantages: Tensor) -> dict[str, list]:
    """Columns of the completions table."""
    table = {
        "task": [sample.rollout.canvas.task for sample in samples],
        "prompt": [sample.row["prompt"] for sample in samples],
        "completion": [sample.rollout.completions[0] for sample in samples],
    }
    for name, column in zip(pipe.rewards.names, scores.T.tolist(), strict=True):
        table[name] = column
    for name, column in pipe.rewards.extras.items():
        if len(column) == len(samples):
            table[name] = column
    return {**table, "advantage": advantages.tolist()}

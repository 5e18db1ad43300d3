"""A whole window on a device that is not the CPU: operands and generators agree, and the host seldom waits.

Values are the CPU's up to rounding. ``support/fake_device.py`` says what is counted and what is refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from peft import LoraConfig

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.models import MMaDAPolicy, placing
from unigrpo.models.reference import reference_context
from unigrpo.samplers import Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from unigrpo.training import evaluation
from unigrpo.training.batches import collate
from unigrpo.training.demonstrations import demonstration_loss, demonstrations
from unigrpo.training.diagnostics import loss_metrics
from unigrpo.training.experience import make_experience
from unigrpo.training.metrics import Metrics
from unigrpo.types import keyed_generator

from ..support.fake_device import DEVICE, Elsewhere, Watch, moved, watched
from ..support.images import image_rows, options, tiny_tokenizer
from ..support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor
from ..support.tolerances import assert_rounding


READS_A_STEP, READS_A_UNIT = 2, 4

SAMPLERS = {
    "text": SemiAutoregressive(steps=6, block_length=8, temperature=1.0),
    "greedy": SemiAutoregressive(steps=6, block_length=8, temperature=0.0),
    "random order": SemiAutoregressive(steps=6, block_length=8, temperature=1.0, remasking="random"),
    "guided": SemiAutoregressive(steps=6, block_length=8, temperature=1.0, guidance_scale=1.5),
    "dual cache": SemiAutoregressive(steps=6, block_length=8, temperature=0.0, kv_cache="dual"),
    "prefix cache": SemiAutoregressive(steps=12, block_length=8, temperature=0.0, kv_cache="prefix", guidance_scale=1.5),
    "threshold": SemiAutoregressive(steps=6, block_length=8, temperature=0.0, confidence_threshold=0.2, exit_entropy=3.0),
    "left to right": LeftToRight(),
    "maskgit": MaskGIT(steps=6, guidance_scale=1.5),
    "emerge": Emerge(steps=6, guidance_scale=1.5),
}  # fmt: skip


def streams(count: int) -> list[torch.Generator]:
    return [keyed_generator("row", row) for row in range(count)]


def here(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.inner if isinstance(tensor, Elsewhere) else tensor


@pytest.mark.parametrize("name", SAMPLERS)
def test_rollouts_are_the_cpus_with_one_or_two_waits_a_step(name):
    sampler, model = SAMPLERS[name], tiny_model().eval()
    policy = MMaDAPolicy(model.config, tiny_processor())
    task = "t2i" if isinstance(sampler, MaskGIT | Emerge) else "text"
    lengths = {"image_tokens": 16} if task == "t2i" else {"max_completion_length": 16}
    canvas = policy.encode(image_rows(task), task, **lengths)
    expected = sampler(model, policy, canvas, generators=streams(4))
    there, done = moved(copy.deepcopy(model)), []
    with watched() as watch:
        canvas = canvas.to(DEVICE)
        watch.counts.clear()
        found = sampler(there, policy, canvas, generators=streams(4), on_step=lambda step, total: done.append(step))
    assert torch.equal(here(found.canvas.ids), expected.canvas.ids)
    assert torch.equal(here(found.step_map), expected.step_map)
    assert_rounding(here(found.sampling_logps), expected.sampling_logps)
    # A rollout has a few reads of its own: padding, blocks, what was written in the end.
    assert watch.counts["read"] <= READS_A_STEP * len(done) + 4, watch.told("read")
    assert watch.counts["download"] <= 4, watch.told("download")


@dataclass
class Scene:
    """A trainer whose model, reference and image tokenizer stand on the fake device."""

    trainer: UniGRPOTrainer
    model: Any
    reference: Any

    def pipeline(self):
        codec = None if self.trainer.codec is None else copy.copy(self.trainer.codec)
        if codec is not None:
            codec.tokenizer, codec.device = moved(copy.deepcopy(codec.tokenizer)), DEVICE
        return replace(self.trainer.pipeline(), model=self.model, device=DEVICE, reference=self.reference, codec=codec)


ONE_BATCH = {"steps_per_generation": 1, "gradient_accumulation_steps": 1}
"""Four rows: several draws a row are enough forwards."""

KINDS = {
    "text, checkpointed": {"lora": True, "gradient_checkpointing": True},
    "coupled": {"algorithm": "coupled_grpo", **ONE_BATCH},
    "sequence": {"algorithm": "espo", **ONE_BATCH},
    "pictures": {"kind": "t2i", "t2i": {"guidance": "both"}},
    "questions": {"kind": "mmu", "task_overrides": {"mmu": {"kv_cache": "dual"}}},
}


def scene(kind: str | None = None, lora: bool = False, t2i: dict | None = None, **changes: Any) -> Scene:
    given = options(kind, t2i=t2i) if kind else {"rows": prompts(16)}
    rows = given.pop("rows")
    # Two windows of rows are not needed: each prompt stands G times.
    args = UniGRPOConfig(
        "unused", **{**TRAINING, "steps_per_generation": 2, **given, **changes, "log_exact_kl": kind is None}
    )
    adapter = LoraConfig(r=4, init_lora_weights=False) if lora else None
    trainer = UniGRPOTrainer(tiny_model(), low_ids, args, rows, processing_class=tiny_processor(), peft_config=adapter)
    model = moved(copy.deepcopy(trainer.model))
    twin = None if trainer._twin is None else moved(copy.deepcopy(trainer._twin))
    return Scene(trainer, model, reference_context(model, lambda: model, twin))


def unit_losses(trainer, window, model, reference, metrics: Metrics, device: Any) -> list[torch.Tensor]:
    """The loss of each unit of the second inner update, with its backward pass."""
    trainer._reference, losses = reference, []
    model.train()
    for units in window.micro_batches:
        for unit in units:
            algorithm = trainer.algorithms[window.experiences[unit.indices[0]].task]
            batch = collate(window.experiences, unit, 1, trainer.policy, device, algorithm.mixes_draws)
            loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
            trainer._guard.check_loss(outputs["terms"].losses.detach(), unit, window.experiences, 1, {})
            loss_metrics(metrics, algorithm, **outputs)
            loss.backward()
            losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("name", KINDS)
def test_a_window_and_its_update_are_the_cpus(name):
    own = scene(**KINDS[name])
    trainer, group = own.trainer, own.trainer.args.num_generations
    answers = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
    rows = [trainer.train_dataset[index] for index in range(answers // group) for _ in range(group)]
    window = make_experience(trainer.pipeline(), rows, 0, Metrics())
    expected = unit_losses(trainer, window, trainer.model, trainer._reference, Metrics(), "cpu")
    assert trainer._guard.flush() == ""
    with watched() as watch:
        there = make_experience(own.pipeline(), rows, 0, Metrics())
        watch.counts.clear(), watch.places.clear()
        metrics = Metrics()
        losses = unit_losses(trainer, there, own.model, own.reference, metrics, DEVICE)
        reads = watch.counts["read"] + watch.counts["download"]
        assert reads <= READS_A_UNIT * len(losses), watch.told("read") + watch.told("download")
        watch.counts.clear()
        assert trainer._guard.flush() == "" and metrics.flush()
        assert watch.counts["read"] <= 2, "metrics and losses are read once a step"
    for one, two in zip(window.experiences, there.experiences, strict=True):
        assert torch.equal(one.ids, two.ids) and torch.equal(one.hidden, two.hidden)
        for field in ("old_logps", "ref_logps", "sampling_logps"):
            if getattr(one, field) is not None:
                # Another attention kernel, and guidance counts a difference 1 + 2 x 1.5 times.
                assert_rounding(getattr(two, field), getattr(one, field), relative=1e-4)
    for loss, known in zip(losses, expected, strict=True):
        assert float(here(loss)) == pytest.approx(float(known), rel=1e-3, abs=1e-5)
    gradients = [parameter.grad for parameter in own.model.parameters() if parameter.grad is not None]
    assert gradients and all(isinstance(gradient, Elsewhere) for gradient in gradients)


def test_given_answers_and_held_out_answers_run_there():
    own = scene(sft_weight=0.0)
    rows = [{**row, "completion": "w5 w6 w7"} for row in prompts(4)]
    own.trainer.args.sft_batch_size = 2
    with watched():
        pipe = own.pipeline()
        given, units = demonstrations(pipe, rows, 0)
        for unit in units:
            loss, losses = demonstration_loss(pipe, own.model, given, unit)
            own.trainer._guard.check_given(losses, unit, given)
            loss.backward()
        samples = evaluation.held_out_answers(pipe, prompts(3), 1, 2)
    assert len(samples) == 3 and all(isinstance(own.completion, str) for own in samples)


def test_pictures_become_codes_and_come_back_there():
    tokenizer = tiny_tokenizer()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tokenizer.encode(pixels)
    expected = tokenizer.decode(codes, 64, 64)
    with watched():
        there = moved(copy.deepcopy(tokenizer))
        found = there.encode(pixels.to(DEVICE))
        decoded = there.decode(found, 64, 64)
    assert torch.equal(here(found), codes)
    assert_rounding(here(decoded), expected, relative=1e-4)


# ---- the fake device itself refuses and counts ----


def test_a_mismatch_of_devices_is_refused():
    with watched():
        there, own = torch.ones(3).to(DEVICE), torch.ones(3)
        with pytest.raises(RuntimeError, match="operands on two devices"):
            _ = there + own
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            there.uniform_(generator=torch.Generator())
        assert here(there + 1.0).tolist() == [2.0] * 3


def test_planted_faults_are_found(monkeypatch):
    """An operand left behind, and a count that is asked for at every step."""
    model = tiny_model().eval()
    policy = MMaDAPolicy(model.config, tiny_processor())
    canvas = policy.encode(prompts(4), "text", max_completion_length=24)

    def fill() -> Watch:
        with watched() as watch:
            SAMPLERS["text"](moved(copy.deepcopy(model)), policy, canvas.to(DEVICE), generators=streams(4))
        return watch

    usual = fill().counts["read"]
    with monkeypatch.context() as patch:
        patch.setattr(placing, "places_of", lambda mask, count=None: mask.flatten().nonzero().squeeze(1))
        patch.setattr("unigrpo.models.llada.modeling.places_of", placing.places_of)
        assert fill().counts["read"] == usual + 6
    with monkeypatch.context() as patch:
        angles = torch.zeros(1, 1, canvas.ids.shape[1], 16)
        patch.setattr("unigrpo.models.llada.modeling.rotary_angles", lambda *_: (angles, angles))
        with pytest.raises(RuntimeError, match="operands on two devices"):
            fill()

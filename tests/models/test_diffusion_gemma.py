"""DiffusionGemma: the public code's numbers, canvases scored at once, its sampler, runs."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer
from unigrpo.algorithm.denoising import denoising_sum
from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.algorithm.noising import random_corruption, random_subset
from unigrpo.config.build import build_algorithms
from unigrpo.config.denoising_presets import objectives_of
from unigrpo.models.gemma import DiffusionGemmaForMaskedDiffusion, PrefixKeys
from unigrpo.rollout.generate import load_policy
from unigrpo.rollout.sample import check_prompt
from unigrpo.samplers import EntropyBound
from unigrpo.testing import check_policy
from unigrpo.testing.rollouts import check_all_written, check_rollout
from unigrpo.training.setup import check_policy_keys
from unigrpo.types import Canvas, TokenSpace, keyed_generator

from ..support.configs import config
from ..support.given_runs import SMALL, TEXT
from ..support.runs import run_and_reopen
from ..support.tiny_decoders import family_golden, tiny_gemma
from ..support.tolerances import assert_rounding


FOLDER = family_golden("diffusion_gemma")
ROWS = [{"prompt": "w3 w4"}, {"prompt": "w9"}, {"prompt": "w5 w6 w7"}]


def streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


@pytest.fixture(scope="module")
def public():
    """The recorded checkpoint and arrays, and a prompt with its canvas."""
    model, arrays = (
        DiffusionGemmaForMaskedDiffusion.from_pretrained(FOLDER).eval(),
        load_file(FOLDER / "golden.safetensors"),
    )
    return model, arrays, torch.cat([arrays["input_ids"], arrays["decoder_input_ids"]], dim=1)


@pytest.mark.golden
@torch.no_grad()
def test_logits_match_the_public_code(public):
    model, arrays, ids = public
    prompt, length = arrays["input_ids"].shape[1], model.config.canvas_length
    mask = F.pad(arrays["attention_mask"], (0, length), value=1)
    again = {
        "self_conditioning_logits": arrays["self_conditioning_logits"],
        "self_conditioning_mask": arrays["self_conditioning_mask"].bool(),
    }
    for name, options in {"no_mask": {}, "self_conditioned": again, "masked": {"attention_mask": mask}}.items():
        keys = PrefixKeys(prompt, ids.shape[1])
        # Read at once, read and kept, and from what was kept.
        for found in (
            model(ids, **options).logits[:, prompt:],
            *(model(ids, cache=keys, **options).logits for _ in range(2)),
        ):
            assert_rounding(found, arrays[f"logits_{name}"])


@pytest.mark.golden
@torch.no_grad()
def test_every_step_of_the_public_sampler_finds_the_same_likeliest_tokens(public):
    """From the canvas that it saw, two canvases long, its own logits read again."""
    model, arrays, _ = public
    sampler, length = EntropyBound(steps=6, entropy_bound=1.5), model.config.canvas_length
    prompt, logits = arrays["input_ids"].shape[1], None
    mask = F.pad(arrays["attention_mask"], (0, 2 * length), value=1)
    for step, canvas in enumerate(arrays["gen.canvas_before_step"]):
        start = prompt + length * (step // sampler.steps)
        if step % sampler.steps == 0:
            logits, keys = None, PrefixKeys(start, start + length)
        ids = arrays["gen.sequences"].clone()
        ids[:, start : start + length] = canvas
        written = torch.arange(ids.shape[1]).expand(ids.shape) >= prompt
        output = model(ids, mask, written=written, cache=keys, self_conditioning_logits=logits)
        logits = output.logits / sampler.temperature_at(step % sampler.steps)
        assert torch.equal(logits.argmax(dim=-1), arrays["gen.argmax_after_step"][step].long())


@pytest.mark.golden
def test_losses_and_their_gradient_are_the_public_ones(public):
    model, arrays, _ = public
    noisy = torch.cat([arrays["input_ids"], arrays["loss.noisy"]], dim=1)
    clean, corrupted = arrays["loss.clean"], arrays["loss.corrupted"].bool()
    labels = torch.cat([torch.full_like(arrays["input_ids"], -100), clean], dim=1)
    loss = model(noisy, labels=labels).loss
    torch.testing.assert_close(loss, arrays["loss.flat_ce_all_positions"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, [model.model.decoder.layers[0].self_attn.q_proj.weight])
    recorded = arrays["loss.grad_decoder_q0"]
    assert float((gradient - recorded).abs().max() / recorded.abs().max()) < 1e-4
    labels[:, -clean.shape[1] :][~corrupted] = -100
    torch.testing.assert_close(model(noisy, labels=labels).loss, arrays["loss.ce_corrupted_only"], rtol=1e-5, atol=0)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("keys", "recorded"),
    [({}, "flat_ce_all_positions"), ({"train_visible": False, "denominator": "tokens"}, "ce_corrupted_only")],
)
def test_the_objective_is_the_public_loss(public, keys, recorded):
    """On its noise, through the policy's own inputs and the likelihood."""
    model, arrays, clean = public[0], public[1], torch.cat([public[1]["input_ids"], public[1]["loss.clean"]], dim=1)
    trained = torch.arange(clean.shape[1]).expand(clean.shape) >= arrays["input_ids"].shape[1]
    hidden = F.pad(arrays["loss.corrupted"].bool(), (arrays["input_ids"].shape[1], 0))
    noisy = torch.cat([arrays["input_ids"], arrays["loss.noisy"]], dim=1)
    objective = objectives_of("diffusion_gemma", keys)["text"]
    rows = [objective.weigh(own, answer, 0.5) for own, answer in zip(hidden, trained, strict=True)]
    space = TokenSpace(start=0, stop=model.config.text_config.vocab_size)
    canvas = Canvas(
        ids=clean, fill_mask=trained, attention_mask=torch.ones_like(trained), task="text", token_space=space
    )
    policy = tiny_gemma()[1]
    policy.config = model.config
    logps = score_tokens(model, policy, canvas, hidden, torch.stack([own.target for own in rows]), noisy).logps
    value = denoising_sum(logps, torch.stack([own.weight for own in rows])).sum() / sum(own.share for own in rows)
    torch.testing.assert_close(value, arrays[f"loss.{recorded}"], rtol=1e-5, atol=0)


@pytest.mark.golden
def test_a_checkpoint_keeps_its_published_names(public, tmp_path):
    public[0].save_pretrained(tmp_path)
    saved, published = (load_file(at / "model.safetensors") for at in (tmp_path, FOLDER))
    assert saved.keys() == published.keys() and all(torch.equal(saved[key], published[key]) for key in saved)


@pytest.mark.smoke
def test_policy_conforms():
    model, policy = tiny_gemma()
    check_policy(policy, model, ROWS)


def answered(length: int = 12):
    model, policy = tiny_gemma()
    canvas = policy.encode(ROWS, max_completion_length=length)
    return model, policy, EntropyBound(steps=3, entropy_bound=1.5)(model, policy, canvas, generators=streams(3))


@torch.no_grad()
def test_all_canvases_are_scored_at_once_as_one_after_the_other():
    """Each behind the clean ones before it, whatever its own noise is; padding and a window before it included."""
    model, policy, rollout = answered()
    canvas, length = rollout.canvas, model.config.canvas_length
    fill, width = canvas.fill_mask, canvas.ids.shape[1]
    generator = torch.Generator().manual_seed(5)
    hidden = fill & (torch.rand(fill.shape, generator=generator) < 0.5)
    noisy = torch.where(
        hidden, policy.token_space("text").draw(fill.numel(), generator=generator).view(fill.shape), canvas.ids
    )
    found = score_tokens(model, policy, canvas, hidden, fill, noisy).logps
    for start in range(width - 12, width, length):
        stop = start + length
        ids = torch.where(torch.arange(width) >= start, noisy, canvas.ids)
        request = {"attention_mask": canvas.attention_mask, "written": fill, "cache": PrefixKeys(start, stop)}
        logits = model(ids, **request, token_space=canvas.token_space).logits
        expected = logits.log_softmax(dim=-1).gather(2, canvas.ids[:, start:stop, None]).squeeze(2)
        torch.testing.assert_close(found[:, start:stop], expected, rtol=1e-5, atol=2e-5)


def test_its_sampler_keeps_the_promises_of_samplers():
    model, policy = tiny_gemma()
    endless, canvas = tiny_gemma()[1], policy.encode(ROWS, max_completion_length=8)
    endless.stop_token_ids = ()
    for own, temperature in ((policy, 1.0), (endless, 1.0), (endless, 0.0)):
        sampler = EntropyBound(steps=3, temperature=temperature)
        rollout = sampler(model, own, canvas, generators=streams(3))
        check_rollout(rollout, canvas, own)
        for row in range(3):
            alone = own.encode(ROWS[row : row + 1], max_completion_length=8)
            again = sampler(model, own, alone, generators=streams(3)[row : row + 1])
            assert torch.equal(again.canvas.ids[0, -8:], rollout.canvas.ids[row, -8:])
        assert rollout.canvas.token_space.contains(rollout.canvas.ids[rollout.completion_mask]).all()
    check_all_written(rollout)
    assert rollout.step_map.unique().tolist() == [-1, 2, 5]


def test_generate_writes_with_its_sampler_at_temperature_one():
    model, policy = tiny_gemma()
    asked = []
    loaded = load_policy(model, processing_class=policy.processor)
    canvas = policy.encode([{"prompt": "w3"}], max_completion_length=8)
    expected = EntropyBound(steps=3)(model, policy, canvas, generators=[keyed_generator("generate", 0, 0)])
    options = {"max_completion_length": 8, "steps": 3, "on_step": lambda done, total: asked.append(total)}
    assert loaded.generate(["w3"], **options) == expected.completions and asked[-1] == 6
    fill, _ = loaded._sampling(
        "text", None, dict.fromkeys(["max_completion_length", "steps", "temperature", "seed"]), None, {}
    )[:2]
    assert fill == EntropyBound()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"algorithm": "trace_rl"}, "noising='trajectory' follows the order"),
        ({"noising": "autoregressive"}, "noising='autoregressive' follows the order"),
        ({"weighting": "inverse_probability"}, "weighting='inverse_probability' estimates a bound of the evidence"),
        ({}, None),
    ],
)
def test_noise_that_needs_masks_or_an_order_is_refused(keys, words):
    refused = nullcontext() if words is None else pytest.raises(ValueError, match=words + ".* noising='structured'")
    with refused:
        check_policy_keys(build_algorithms(config(**keys)), tiny_gemma()[1])


def test_a_sure_canvas_is_finished_early_and_its_row_leaves():
    model, policy = tiny_gemma()
    policy.stop_token_ids, batches = (), []
    canvas = policy.encode(ROWS, max_completion_length=8)
    model.register_forward_hook(lambda *given: batches.append(len(given[2]["input_ids"])), with_kwargs=True)
    for stable, expected in ((0, [3, 3]), (9, [3] * 12)):
        batches.clear()
        sampler = EntropyBound(steps=6, stability_threshold=stable, finish_entropy=1e3)
        sampler(model, policy, canvas, generators=streams(3))
        assert batches == expected


def test_what_does_not_fit_the_family_is_refused():
    model, policy = tiny_gemma()
    with pytest.raises(
        ValueError, match="max_completion_length=6: the model writes whole canvases; give a multiple of 4"
    ):
        EntropyBound().begin(policy, policy.encode(ROWS, max_completion_length=6), streams(3))
    row = {"prompt": "w1"}
    for keys, words in (
        (
            {"sampler": "entropy_bound", "max_completion_length": 6},
            r"rows\[0\], task 'text': max_completion_length=6",
        ),
        ({"sampler": "block"}, "writes at a mask id, and DiffusionGemmaPolicy has none: set sampler='entropy_bound'"),
    ):
        with pytest.raises(ValueError, match=words):
            check_prompt(policy, config(**keys), None, row, "rows[0]")
    with pytest.warns(UserWarning, match="earlier blocks of DiffusionGemmaPolicy .* set sampler='entropy_bound'"):
        check_prompt(policy, config(sampler="dream"), None, row, "rows[0]")
    with pytest.raises(ValueError, match="has no mask id to hide a prompt with"):
        policy.guidance_canvas(policy.encode(ROWS, max_completion_length=4))
    canvas = policy.encode(ROWS, max_completion_length=4)
    early = replace(canvas, fill_mask=canvas.fill_mask.roll(-1, dims=1) | canvas.fill_mask)
    early.fill_mask[0] = canvas.fill_mask[0]
    with pytest.raises(ValueError, match="answers that begin in one column"):
        EntropyBound()(model, policy, early, generators=streams(3))
    with pytest.raises(ValueError, match="text only"):
        policy.encode(ROWS, "mmu", max_completion_length=4)
    assert policy.token_space("text") == TokenSpace(start=0, stop=150, exclude=(141, 142, 143, 146))


def test_a_run_starts_at_ratio_one_trains_resumes_and_reopens(make_trainer, tmp_path):
    model, policy = tiny_gemma()
    base = tmp_path / "base"
    model.save_pretrained(base)
    policy.processor.save_pretrained(base)
    options = {"model": str(base), "max_completion_length": 8, "sampler": "entropy_bound"}
    with pytest.raises(ValueError, match="one set of weights"):
        make_trainer(processor=None, lora=True, **options)
    whole, opened = run_and_reopen(make_trainer, tmp_path, **options)
    for name, parameter in opened.model.named_parameters():
        torch.testing.assert_close(parameter, whole.model.get_parameter(name))
    tower = "model.encoder.vision_tower.patch_embedder.input_proj.weight"
    assert torch.equal(opened.model.get_parameter(tower), model.get_parameter(tower))


def test_given_answers_are_learned(tmp_path):
    """Answers of other lengths are filled up to whole canvases."""
    model, policy = tiny_gemma()
    model.save_pretrained(tmp_path / "base")
    policy.processor.save_pretrained(tmp_path / "base")
    given = {**SMALL, "max_length": 24, "max_steps": 12, "learning_rate": 1e-2}
    args = MaskedDenoisingConfig(str(tmp_path / "run"), **given, objective="diffusion_gemma")
    trainer = MaskedDenoisingTrainer(str(tmp_path / "base"), args, TEXT[:2], TEXT[:2])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


@torch.no_grad()
def test_unigrpos_estimate_is_its_mean_over_all_noise():
    """Two of four tokens replaced, by every pair and by every pair of ids: drawn noise scores that mean within four standard errors."""
    model, policy = tiny_gemma()
    space = TokenSpace(start=3, stop=6)
    canvas = replace(policy.encode(ROWS[:1], max_completion_length=4), token_space=space)
    policy.stop_token_ids = ()
    rollout = EntropyBound(steps=2)(model, policy, canvas, generators=streams(1))
    canvas, places = rollout.canvas, rollout.canvas.fill_mask[0].nonzero().flatten().tolist()

    def value(hidden, noisy):
        many = canvas.take(torch.zeros(len(hidden), dtype=torch.int64))
        return score_tokens(model, policy, many, hidden, hidden, noisy).logps.sum(dim=1)

    pairs = [pair for pair in itertools.combinations(places, 2) for _ in range(9)]
    hidden = torch.zeros(len(pairs), canvas.ids.shape[1], dtype=torch.bool)
    for row, pair in zip(hidden, pairs, strict=True):
        row[list(pair)] = True
    ids = torch.tensor(list(itertools.product(range(3, 6), repeat=2))).repeat(len(pairs) // 9, 1)
    exact = value(hidden, canvas.ids.expand(hidden.shape).masked_scatter(hidden, ids))
    draws = 600
    streamed = [keyed_generator("noise", row) for row in range(draws)]
    hidden = torch.stack([random_subset(canvas.fill_mask[0], 2, generator=own) for own in streamed])
    noisy = torch.stack(
        [
            random_corruption(own, canvas.ids[0], space, generator=stream)
            for own, stream in zip(hidden, streamed, strict=True)
        ]
    )
    found = value(hidden, noisy)
    assert float(exact.std()) > 0.1
    assert abs(float(found.mean() - exact.mean())) < 4 * float(exact.std()) / draws**0.5

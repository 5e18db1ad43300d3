"""All blocks of an answer in one pass over a noisy and a clean copy, against one forward a block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.models.decoder import two_copies
from unigrpo.testing import check_policy
from unigrpo.types import Canvas

from ..support.tiny import prompts
from ..support.tiny_decoders import tiny_decoder


BLOCKS = {"attention": "block_causal", "block_size": 4}
CASES = {
    "qwen2, start": ("a2d-qwen2", {}),
    "qwen3, prompt_end": ("blocks", {}),
    "qwen3, start": ("blocks", {"block_anchor": "start"}),
    "llama, shifted, start": ("a2d-llama", {}),
    "llama, shifted, prompt_end": ("a2d-llama", {"block_anchor": "prompt_end"}),
    "blocks of three": ("a2d-qwen2", {"block_size": 3, "block_anchor": "prompt_end"}),
}
ANSWER = 10


def built(case: str):
    name, fields = CASES[case]
    return tiny_decoder(name, **{**BLOCKS, **fields})


def written(policy, groups: int = 2, answers: int = 2, draws: int = 2) -> tuple[Canvas, torch.Tensor, torch.Tensor]:
    """Answers of random ids to prompts of several lengths, and what is hidden and scored: rows of one answer are neighbours.

    Half of the hidden tokens are scored; prompts have a hidden token too, and one row in five scores nothing.
    """
    stream = torch.Generator().manual_seed(0)
    canvas = policy.encode(prompts(groups), max_completion_length=ANSWER)
    canvas = canvas.take(torch.arange(groups).repeat_interleave(answers))
    canvas = replace(
        canvas,
        ids=torch.where(canvas.fill_mask, torch.randint(1, 140, canvas.ids.shape, generator=stream), canvas.ids),
    )
    # Two answers that begin alike.
    canvas.ids[1, -ANSWER : -ANSWER // 2] = canvas.ids[0, -ANSWER : -ANSWER // 2]
    canvas = canvas.take(torch.arange(groups * answers).repeat_interleave(draws))
    chance = torch.rand(canvas.ids.shape, generator=stream)
    target = canvas.fill_mask & (chance < 0.4) & (torch.arange(len(chance)) % 5 != 4)[:, None]
    return (
        canvas,
        (canvas.fill_mask & (chance < 0.7)) | (canvas.attention_mask & ~canvas.fill_mask & (chance < 0.1)),
        target,
    )


def block_by_block(model, policy, canvas: Canvas, hidden, target) -> torch.Tensor:
    """log p ``[B, L]`` of one-copy forwards, one a block: what is behind it is not there, what is before it is finished."""
    blocks, found = policy.blocks(canvas), torch.zeros(canvas.ids.shape)
    for own in blocks[target].unique().tolist():
        here, prompt = target & (blocks == own), ~canvas.fill_mask
        inputs = policy.inputs(canvas, hidden & (prompt | (blocks >= own)))
        request = {"select": policy.rows(here), "targets": canvas.ids[here], "token_space": canvas.token_space}
        found = found.masked_scatter(here, model(**inputs, **request).logps)
    return found


def value_and_gradients(model, logps: torch.Tensor) -> list[torch.Tensor]:
    """The log-probabilities, and the gradient of a sum of them with unequal weights."""
    model.zero_grad()
    (logps * torch.arange(logps.numel()).view_as(logps).sin()).sum().backward()
    return [logps.detach(), *(own.grad.clone() for own in model.parameters() if own.grad is not None)]


def assert_close(one: list[torch.Tensor], two: list[torch.Tensor]) -> None:
    assert len(one) == len(two) > 3
    torch.testing.assert_close(one[0], two[0], rtol=0, atol=2e-5)
    for own, other in zip(one[1:], two[1:], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.smoke
@pytest.mark.parametrize("case", CASES)
def test_one_pass_is_a_forward_a_block(case):
    """Values and gradients, with padding on the left, hidden prompt tokens, and tokens that are hidden and not scored."""
    model, policy = built(case)
    given = written(policy)
    assert not given[0].attention_mask.all() and len(policy.blocks(given[0])[given[2]].unique()) > 2
    expected = value_and_gradients(model, block_by_block(model, policy, *given))
    assert_close(value_and_gradients(model, score_tokens(model, policy, *given).logps), expected)


def lora(model):
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    return model


def checkpointed(model):
    model.gradient_checkpointing_enable()
    return model.train()


def eager(model):
    model.config._attn_implementation = "eager"
    return model


@pytest.mark.parametrize("change", [lora, checkpointed, eager, lambda model: checkpointed(lora(model))])
def test_adapters_checkpointing_and_eager_attention_change_nothing(change):
    """Each against a forward a block without them, of the same weights."""
    model, policy = built("qwen3, start")
    given, own = written(policy), change(model)
    found = value_and_gradients(own, score_tokens(own, policy, *given).logps)
    if own is model:
        own, _ = built("qwen3, start")
    assert_close(found, value_and_gradients(own.eval(), block_by_block(own, policy, *given)))


@pytest.mark.parametrize("case", ["qwen3, start", "llama, shifted, start"])
def test_every_division_of_the_rows_gives_the_same(case, monkeypatch):
    model, policy = built(case)
    given, found = written(policy), []
    for size in (1, 2, 3, 8):
        monkeypatch.setattr(two_copies, "_divisions", lambda count, size=size: [size])
        found.append(value_and_gradients(model, score_tokens(model, policy, *given).logps))
    for other in found[1:]:
        assert_close(other, found[0])


def columns_of(policy, canvas, hidden, target, width: int):
    """``lay_out`` as the forward calls it."""
    inputs = policy.likelihood_inputs(canvas, hidden)
    positions = (canvas.attention_mask.long().cumsum(1) - 1).clamp(min=0)
    rows = (inputs["input_ids"], inputs["clean_ids"], canvas.attention_mask, positions, policy.blocks(canvas), target)
    return two_copies.lay_out(*rows, shift=0, width=width)[0]


def test_what_rows_have_in_common_is_there_once():
    """A prompt for its group, an answer for its draws, two beginnings of one; blocks that nobody scores are not there at all."""
    _, policy = built("qwen3, prompt_end")
    canvas, _, target = written(policy)
    columns = columns_of(policy, canvas, target, target, 10**9)
    assert len(columns.ids) == 1
    blocks, clean, noisy = policy.blocks(canvas), set(), 0
    for row, own in enumerate(blocks):
        scored = own[target[row]].tolist()
        noisy += int(torch.isin(own, torch.tensor(scored)).sum())
        before = own < max(scored, default=0)
        for place in (before & (own >= 0)).nonzero().flatten().tolist():
            clean.add(
                (
                    tuple(canvas.ids[row, canvas.attention_mask[row] & (own <= own[place])].tolist()),
                    int(own[place]),
                    place,
                )
            )
    assert int(columns.noisy.sum()) == noisy
    assert int(((columns.row >= 0) & ~columns.noisy).sum()) == len(clean)
    alone = columns_of(policy, canvas, target, target, 0)
    assert len(alone.ids) > 1 and int((alone.row >= 0).sum()) > noisy + len(clean)


def test_the_guided_twin_hides_the_prompt_in_both_copies():
    model, policy = built("qwen3, prompt_end")
    canvas, hidden, target = written(policy)
    hidden = hidden & canvas.fill_mask
    found = score_tokens(model, policy, canvas, hidden, target, guidance_scale=1.5).logps
    twin = policy.guidance_canvas(canvas)
    twin, space = replace(twin, ids=torch.where(canvas.fill_mask, canvas.ids, twin.ids)), canvas.token_space
    inputs = [policy.likelihood_inputs(own, hidden) for own in (canvas, twin)]
    assert not (inputs[1]["clean_ids"] != policy.mask_token_id)[canvas.attention_mask & ~canvas.fill_mask].any()
    given, free = (model(**own, select=target, token_space=space).logits for own in inputs)
    rows = (free + 2.5 * (given - free)).log_softmax(dim=-1)
    expected = rows.gather(1, canvas.ids[target][:, None]).squeeze(1)
    torch.testing.assert_close(found[target], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_logits_of_all_positions_and_of_none():
    """Without ``select`` every position has its noisy logits; a row that asks for nothing costs nothing."""
    model, policy = built("llama, shifted, start")
    canvas, hidden, target = written(policy)
    inputs, select = policy.likelihood_inputs(canvas, hidden), policy.rows(target)
    some = model(**inputs, select=select).logits
    torch.testing.assert_close(model(**inputs).logits[select], some, rtol=0, atol=1e-4)
    assert model(**inputs, select=torch.zeros_like(select)).logits.shape == (0, policy.config.vocab_size)


def test_clean_ids_are_refused_where_nothing_reads_them():
    model, policy = tiny_decoder("a2d-qwen3")
    ids = torch.ones(1, 4, dtype=torch.int64)
    assert "clean_ids" not in policy.likelihood_inputs(policy.encode(prompts(1), max_completion_length=4))
    with pytest.raises(ValueError, match="clean_ids are for attention='block_causal', and this is 'full'"):
        model(ids, clean_ids=ids)
    model, _ = built("qwen3, start")
    with pytest.raises(ValueError, match="clean_ids go with input_ids, without a cache"):
        model(ids, clean_ids=ids, output_hidden_states=True)


@pytest.mark.parametrize("case", [case for case in CASES if "start" in case])
def test_the_suite_takes_blocks_that_begin_with_the_row(case):
    model, policy = built(case)
    check_policy(policy, model, prompts(3))

"""The semi-autoregressive text sampler: parity with the public code, schedules, draws, guidance. Its promises: `test_conformance`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unigrpo.models import MMaDAPolicy
from unigrpo.models.draw import Draw, choose_tokens
from unigrpo.models.mmada import modeling
from unigrpo.samplers import SAMPLERS, SemiAutoregressive
from unigrpo.samplers.parity import PublicTextSampler
from unigrpo.samplers.semi_autoregressive import split_evenly, transfer_counts
from unigrpo.types import Canvas, TokenSpace, keyed_generator

from ..support.tiny import golden, tiny_model, tiny_processor


pytestmark = pytest.mark.golden


MASK, EOS, STOP = 184, 161, 123
CASES = ("A", "B", "C", "D", "E", "F", "G", "H", "M", "FAST", "FAST2")
ROWS = [{"prompt": "w1 w2"}, {"prompt": "w9 w8 w7 w6 w5 w4"}, {"prompt": "w50"}, {"prompt": "w3 w60 w7 w90"}]


class CountingModel(modeling.MMaDAForMaskedDiffusion):
    """Counts its forwards and the rows they took."""

    forwards = rows = 0

    def forward(self, *args, **kwargs):
        self.forwards += 1
        self.rows += len(kwargs["input_ids"])
        return super().forward(*args, **kwargs)


def counting_model(mask_lover: bool = False) -> CountingModel:
    """The tiny model; with ``mask_lover``, one whose most likely token is often the mask id, as in golden M."""
    plain = tiny_model()
    model = CountingModel(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    if mask_lover:
        weight = model.get_output_embeddings().weight
        with torch.no_grad():
            weight[MASK] = 1.05 * weight[207]
    return model


@pytest.fixture(name="model")
def model_that_counts() -> CountingModel:
    return counting_model()


@pytest.fixture(scope="module")
def policy() -> MMaDAPolicy:
    policy = MMaDAPolicy(tiny_model().config, tiny_processor())
    policy.stop_token_ids = (EOS, STOP)
    return policy


@pytest.fixture(scope="module")
def g2() -> tuple[dict, dict]:
    return golden("g2_text")


def streams(count: int, seed: int = 0) -> list[torch.Generator]:
    return [keyed_generator("test", seed, row) for row in range(count)]


def sample(model, policy, canvas: Canvas, seed: int = 0, kind: type = SemiAutoregressive, **settings):
    options = {"steps": 12, "block_length": 8, "temperature": 0.0, **settings}
    return kind(**options)(model, policy, canvas, generators=streams(len(canvas.ids), seed))


def text_canvas(policy, rows=ROWS, length: int = 24) -> Canvas:
    return policy.encode(rows, max_completion_length=length)


def written(rollout, row: int) -> dict[str, list]:
    """What the sampler wrote in one row, without the padding in front of it."""
    fill = rollout.canvas.fill_mask[row]
    return {
        "ids": rollout.canvas.ids[row][fill],
        "steps": rollout.step_map[row][fill],
        "counted": rollout.completion_mask[row][fill],
        "logps": rollout.sampling_logps[row][fill],
    }


def golden_canvas(prompt: torch.Tensor, length: int, mask: torch.Tensor | None) -> Canvas:
    ids = torch.cat([prompt, torch.full((len(prompt), length), MASK)], dim=1)
    fill = torch.zeros_like(ids, dtype=torch.bool)
    fill[:, prompt.shape[1] :] = True
    real = torch.ones_like(fill) if mask is None else mask.bool()
    space = TokenSpace(start=0, stop=197, exclude=(MASK,))
    return Canvas(ids=ids, fill_mask=fill, attention_mask=real, task="text", token_space=space)


def golden_run(g2, policy, name: str, **changes):
    """A golden case by the public code's rules: the model, the rollout and the expected ids."""
    arrays, described = g2
    case = described["cases"]["FAST" if name == "FAST2" else name]
    settings = {
        "steps": case["steps"],
        "block_length": case["block_length"],
        "temperature": 0.0,
        "guidance_scale": case.get("cfg_scale", 0.0),
        "stop": "block_end" if name.startswith("FAST") else "never",
        **changes,
    }
    prompt = arrays[f"{name}.prompt"]
    # The public code drops the mask under guidance (case H), so parity is with the mask off.
    canvas = golden_canvas(prompt, case["max_new_tokens"], arrays.get(f"{name}.attention_mask"))
    model = counting_model(mask_lover=name == "M")
    rollout = PublicTextSampler(**settings)(
        model, stopping_policy(policy, STOP), canvas, generators=streams(len(prompt))
    )
    return model, rollout, arrays[f"{name}.out"]


@pytest.mark.smoke
@pytest.mark.parametrize("name", CASES)
def test_tokens_equal_the_public_code(g2, policy, name):
    """And, where its steps are those of the blocks, every canvas on the way."""
    model, rollout, expected = golden_run(g2, policy, name)
    assert torch.equal(rollout.canvas.ids, expected)
    case = g2[1]["cases"][name]
    assert model.forwards == {"F": 16, "H": 8, "FAST2": 20}.get(name, case.get("forwards", 12))
    if "leftover_masks" in case:
        assert int((rollout.canvas.ids == MASK).sum()) == case["leftover_masks"]
    assert not (rollout.completion_mask & (rollout.canvas.ids == MASK)).any()
    for step, before in enumerate(g2[0][f"{name}.history"] if name in "ABCDEG" else ()):
        later = rollout.canvas.fill_mask & (rollout.step_map >= step)
        assert torch.equal(expected.masked_fill(later, MASK), before.long())


def test_fast_stop_is_what_cuts_the_answer(g2, policy):
    model, rollout, _ = golden_run(g2, policy, "FAST", stop="never")
    assert torch.equal(rollout.canvas.ids, g2[0]["FAST.out_no_stop"])
    assert model.forwards == 20


def test_by_the_public_rules_a_position_left_masked_stays_a_candidate(g2, policy):
    _, rollout, _ = golden_run(g2, policy, "M")
    first_block = rollout.step_map[:, 8:16]
    assert (first_block >= 4).any(), "steps 4 and later belong to the blocks after it"


def test_transfer_counts_equal_the_public_table(g2):
    for masked, steps, *counts in g2[0]["num_transfer_tokens"].tolist():
        assert [own for (own,) in transfer_counts([masked], steps)] == counts[:steps] and sum(counts[:steps]) == masked


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_id_and_image_ids_are_never_written(g2, policy, temperature):
    model = counting_model(mask_lover=True)
    canvas = golden_canvas(g2[0]["M.prompt"], 24, None)
    public = sample(model, policy, canvas, stop="never", kind=PublicTextSampler)
    assert (public.canvas.ids[canvas.fill_mask] == MASK).any()
    rollout = sample(model, policy, canvas, stop="never", temperature=temperature)
    tokens = rollout.canvas.ids[canvas.fill_mask]
    assert (tokens != MASK).all() and (tokens < 197).all()
    assert rollout.completion_mask[:, canvas.fill_mask[0]].any(1).all()
    assert torch.equal(rollout.canvas.ids[~canvas.fill_mask], canvas.ids[~canvas.fill_mask])


def test_steps_and_blocks_that_do_not_divide(policy, model):
    """The remainder goes to the first steps."""
    assert split_evenly(11, 3) == [4, 4, 3] and split_evenly(2, 3) == [1, 1, 0]
    canvas, ticks = text_canvas(policy, length=22), []
    fill = SemiAutoregressive(steps=11, block_length=8, temperature=0.0, stop="never")
    rollout = fill(model, policy, canvas, generators=streams(4), on_step=lambda *tick: ticks.append(tick))
    assert ticks == [(done, 11) for done in range(1, 12)]
    for row in range(4):
        steps = written(rollout, row)["steps"]
        assert steps.bincount().tolist() == [2] * 11
        assert [sorted({*block.tolist()}) for block in steps.split(8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    rollout = sample(model, policy, text_canvas(policy, length=10), steps=4, block_length=10, stop="never")
    assert written(rollout, 0)["steps"].bincount().tolist() == [3, 3, 2, 2]


def test_impossible_settings_are_errors(policy, model):
    canvas = text_canvas(policy)
    with pytest.raises(ValueError, match="steps=2 is less than the 3 blocks"):
        sample(model, policy, canvas, steps=2)
    with pytest.raises(ValueError, match="3 generators for 4 rows"):
        SemiAutoregressive(steps=12, block_length=8)(model, policy, canvas, generators=streams(3))
    wrong = {"steps": 0, "block_length": 0, "temperature": -1.0, "guidance_scale": -0.1, "remasking": "x", "stop": "x"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            SemiAutoregressive(**{name: value})
    with pytest.raises(ValueError, match="PublicTextSampler with remasking='random'"):
        PublicTextSampler(remasking="random")
    assert SAMPLERS["semi_autoregressive"] is SemiAutoregressive


def stopping_policy(policy, token: int) -> MMaDAPolicy:
    own = MMaDAPolicy(policy.config, policy.processor)
    own.stop_token_ids = (token,)
    return own


def test_stopping_early_saves_forwards_and_changes_nothing_before_the_stop(policy, model):
    full = sample(model, policy, text_canvas(policy, [ROWS[0]]), stop="never", steps=24)
    assert model.forwards == 24
    full_part = written(full, 0)
    own = stopping_policy(policy, int(full_part["ids"][2]))
    model.forwards = 0
    part = written(sample(model, own, text_canvas(own, [ROWS[0]]), steps=24), 0)
    length = int(part["counted"].sum())
    assert length <= 8 and model.forwards <= 8
    assert part["ids"][length - 1] == own.stop_token_ids[0]
    before_the_stop = (part["steps"] >= 0) & (part["steps"] <= part["steps"][length - 1])
    assert before_the_stop.any()
    for key in ("ids", "steps", "logps"):
        assert torch.equal(part[key][before_the_stop], full_part[key][before_the_stop]), key


def test_finished_rows_leave_the_batch(policy, model):
    rollout = sample(model, policy, text_canvas(policy), stop="never", steps=24)
    assert model.rows == 24 * 4
    model.rows = 0
    own = stopping_policy(policy, int(written(rollout, 0)["ids"][1]))
    sample(model, own, text_canvas(own), steps=24)
    assert model.rows <= 24 * 4 - 16


def test_greedy_tokens_are_the_most_likely_ones(policy, model):
    canvas = text_canvas(policy)
    rollout = sample(model, policy, canvas, steps=24, block_length=24, stop="never")
    first = rollout.step_map == 0
    with torch.no_grad():
        logits = model(**policy.inputs(canvas), select=canvas.fill_mask, token_space=canvas.token_space).logits
    best = logits.log_softmax(1).max(1)
    table = best.values.view(4, 24)
    assert torch.equal(first[:, canvas.fill_mask[0]].long().argmax(1), table.argmax(1))
    assert torch.equal(rollout.canvas.ids[first], best.indices.view(4, 24).gather(1, table.argmax(1)[:, None])[:, 0])


def draw_tokens(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    return choose_tokens(logits, Draw(uniforms=uniforms)).tokens


def test_draws_follow_the_softmax():
    generator = torch.Generator().manual_seed(5)
    width, draws = 1300, 40_000
    logits = torch.randn(width, generator=generator) * 3
    logits[700:720] += 4
    counts = torch.zeros(width, dtype=torch.float64)
    for part in torch.rand(draws, dtype=torch.float64, generator=generator).split(4000):
        counts += torch.bincount(draw_tokens(logits.expand(len(part), -1), part), minlength=width)
    expected = logits.double().softmax(0) * draws
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    freedom = len(wanted) - 1
    assert freedom > 100
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    # Wilson and Hilferty's normal approximation of the chi-square law, at 4 standard deviations.
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert abs(deviation) < 4


def test_a_draw_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.randn(3, 1100, generator=torch.Generator().manual_seed(0)) * 4
    cumulative = logits.double().softmax(1).cumsum(1)
    for row in range(3):
        for column in (0, 1, 511, 512, 513, 1023, 1024, 1099):
            low = cumulative[row, column - 1] if column else torch.zeros((), dtype=torch.float64)
            middle = (low + cumulative[row, column]) / 2
            if cumulative[row, column] - low > 1e-6:
                assert int(draw_tokens(logits[row : row + 1], middle[None])) == column


@pytest.mark.parametrize("width", [1, 5, 512, 513, 2000])
@pytest.mark.parametrize("closed_value", [-torch.inf, torch.finfo(torch.float32).min])
def test_edges_of_the_unit_interval_and_closed_entries(width, closed_value):
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(4, width, generator=generator)
    closed = torch.rand(4, width, generator=generator) < 0.5
    closed[:, [0, -1]] = width > 1
    closed[:, width // 2] = False
    logits = logits.masked_fill(closed, closed_value)
    open_columns = [(~row).nonzero().flatten() for row in closed]
    first, last = (torch.stack([c[i] for c in open_columns]) for i in (0, -1))
    assert torch.equal(draw_tokens(logits, torch.zeros(4, dtype=torch.float64)), first)
    assert torch.equal(draw_tokens(logits, torch.full((4,), 1 - 2**-53, dtype=torch.float64)), last)
    for u in torch.rand(200, dtype=torch.float64, generator=generator):
        columns = draw_tokens(logits, u.expand(4))
        assert not closed.gather(1, columns[:, None]).any()


def test_draws_at_block_edges_never_fall_on_closed_entries():
    behind_closed_blocks = torch.full((1, 1536), torch.finfo(torch.float32).min)
    behind_closed_blocks[0, [700, 1300]] = 0.0
    for u, column in ((0.0, 700), (0.25, 700), (0.75, 1300)):
        assert int(draw_tokens(behind_closed_blocks, torch.tensor([u], dtype=torch.float64))) == column
    logits = torch.full((1, 1536), torch.finfo(torch.float32).min)
    logits[0, [3, 700, 1100]] = torch.tensor([0.1, 0.2, 0.3])
    edges = logits.double().softmax(1).cumsum(1)[0, [3, 700, 1100]]
    for edge in edges.tolist():
        for u in (edge - 2e-8, edge - 1e-16, edge, min(edge + 1e-16, 1 - 2**-53), edge + 2e-8):
            if u < 1:
                assert int(draw_tokens(logits, torch.tensor([u], dtype=torch.float64))) in (3, 700, 1100)


@torch.no_grad()
def test_guidance_on_hidden_states_equals_guidance_on_logits(policy, model):
    canvas = text_canvas(policy)
    twin = policy.guidance_canvas(canvas)
    prompt = canvas.attention_mask & ~canvas.fill_mask
    assert (twin.ids[prompt] == MASK).all() and torch.equal(twin.ids[~prompt], canvas.ids[~prompt])
    select, scale = canvas.fill_mask, 1.5
    both = {
        "input_ids": torch.cat([canvas.ids, twin.ids]),
        "attention_mask": torch.cat([canvas.attention_mask, twin.attention_mask]),
    }
    guided = model(**both, select=torch.cat([select, select]), guidance_scale=scale).logits
    given, free = (model(**policy.inputs(c), select=select).logits.double() for c in (canvas, twin))
    expected = free + (scale + 1) * (given - free)
    assert float((given - free).abs().max()) > 1
    assert float((guided - expected).abs().max()) < 1e-4


def test_guidance_zero_is_off_and_more_changes_the_answer(policy, model):
    """Both branches follow the same mask: what padding holds changes no answer."""
    canvas = text_canvas(policy)
    plain = sample(model, policy, canvas, stop="never")
    assert model.rows == 12 * 4
    guided = sample(model, policy, canvas, stop="never", guidance_scale=2.0)
    assert model.rows == 12 * 4 + 12 * 8
    assert not torch.equal(plain.canvas.ids, guided.canvas.ids)
    other = replace(canvas, ids=torch.where(canvas.attention_mask, canvas.ids, (canvas.ids + 31) % 150))
    again, fill = sample(model, policy, other, stop="never", guidance_scale=2.0), canvas.fill_mask
    assert torch.equal(guided.canvas.ids[fill], again.canvas.ids[fill])

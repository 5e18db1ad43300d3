"""What is left out of a forward, exactly (the last block's unwanted positions) and approximately (caches, early commits)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from torch.distributed.utils import _cast_forward_inputs
from transformers import TrainerCallback

from tests.test_text_sampler import CountingModel, counting_model, golden_canvas, sample, streams, text_canvas, written
from tests.tiny import low_ids, tiny_model, tiny_processor
from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.algorithms import build_algorithms
from unigrpo.anchors import log_decoding_gap
from unigrpo.evaluation import eval_pipeline
from unigrpo.likelihood import score_tokens
from unigrpo.metrics import Metrics
from unigrpo.models import MMaDAPolicy
from unigrpo.models.cache import KeyValueCache, positions_of
from unigrpo.models.draw import Draw
from unigrpo.samplers import SemiAutoregressive
from unigrpo.samplers.caching import BlockCache
from unigrpo.sampling import Pipeline, check_prompt
from unigrpo.settings import EXACT_DECODING
from unigrpo.types import Canvas, TokenSpace


pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def policy() -> MMaDAPolicy:
    return MMaDAPolicy(tiny_model().config, tiny_processor())


@pytest.fixture
def model() -> CountingModel:
    return counting_model()


# ---- the last block computes what is selected ----


def test_positions_are_packed_in_order():
    select = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]]).bool()
    index, counted = positions_of(select)
    assert index.shape == (3, 3)
    assert [row[keep].tolist() for row, keep in zip(index, counted, strict=True)] == [[1, 3], [], [0, 1, 3]]
    nothing, counted = positions_of(torch.zeros(2, 4, dtype=torch.bool))
    assert nothing.shape == (2, 1)
    assert not counted.any()


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_selected_rows_and_their_gradients_equal_those_of_all_rows(policy, share):
    canvas = text_canvas(policy)
    select = canvas.fill_mask & (torch.rand(canvas.ids.shape, generator=torch.Generator().manual_seed(0)) < share)
    gradients = []
    for chosen in (select, None):
        model = tiny_model()
        logits = model(**policy.inputs(canvas), select=chosen).logits
        rows = logits if chosen is not None else logits[select]
        (rows.softmax(-1)[:, ::3].sum() + rows.square().mean()).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        gradients[-1]["rows"] = rows.detach()
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, atol=2e-5, rtol=1e-4, msg=name)


def test_the_last_block_runs_only_the_selected_positions(policy, model):
    shapes: dict[str, list[int]] = {"first": [], "last": []}
    for name, block in (
        ("first", model.model.transformer["blocks"][0]),
        ("last", model.model.transformer["blocks"][-1]),
    ):
        block.ff_proj.register_forward_hook(lambda _, args, __, own=name: shapes[own].append(args[0].shape[1]))
    canvas = text_canvas(policy, length=24)
    select = canvas.fill_mask.clone()
    select[:, :-5] = False
    model(**policy.inputs(canvas), select=select)
    assert shapes == {"first": [canvas.ids.shape[1]], "last": [5]}


# ---- keys and values that are kept ----


def stale_logits(model, policy, before, after, select, span):
    """Logits of ``after`` where attention outside ``span`` sees the keys and values of ``before``, by hooks alone."""
    kept: dict = {}
    outside = torch.ones(before.ids.shape[1], dtype=torch.bool)
    outside[span[0] : span[1]] = False

    def keep_or_replace(module, _, output):
        if module not in kept:
            kept[module] = output.detach()
            return None
        return torch.where(outside[None, :, None], kept[module], output)

    layers = [getattr(block, name) for block in model.model.transformer["blocks"] for name in ("k_proj", "v_proj")]
    hooks = [layer.register_forward_hook(keep_or_replace) for layer in layers]
    model(**policy.inputs(before))
    logits = model(**policy.inputs(after)).logits[select]
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("span", [(10, 18), (10, None), (0, None)], ids=["dual", "prefix", "everything"])
@torch.no_grad()
def test_a_forward_over_a_span_sees_the_keys_that_were_kept(policy, model, span):
    canvas = text_canvas(policy)
    span = (span[0], span[1] or canvas.ids.shape[1])
    changed = canvas.ids.clone()
    changed[:, -20:-8] = torch.randint(3, 150, changed[:, -20:-8].shape, generator=torch.Generator().manual_seed(3))
    after = replace(canvas, ids=changed)
    select = torch.zeros_like(canvas.fill_mask)
    select[:, span[0] + 1 : span[0] + 7] = True
    select[0, span[0] + 2] = False
    cache = KeyValueCache()
    model(**policy.inputs(canvas), select=select, cache=cache)
    cache.span = span
    own = model(**policy.inputs(after), select=select, cache=cache).logits
    expected = stale_logits(model, policy, canvas, after, select, span)
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)
    exact = model(**policy.inputs(after), select=select).logits
    if span == (0, canvas.ids.shape[1]):
        torch.testing.assert_close(own, exact, atol=1e-5, rtol=0)
    else:
        assert float((own - exact).abs().max()) > 1e-2


@torch.no_grad()
def test_kept_rows_can_leave(policy, model):
    canvas = text_canvas(policy)
    select = canvas.fill_mask
    whole, part = KeyValueCache(), KeyValueCache()
    rows = torch.tensor([2, 0])
    model(**policy.inputs(canvas), select=select, cache=whole)
    model(**policy.inputs(canvas), select=select, cache=part)
    part.take(rows)
    whole.span = part.span = (canvas.ids.shape[1] - 24, canvas.ids.shape[1])
    logits = model(**policy.inputs(canvas), select=select, cache=whole).logits.view(4, 24, -1)
    few = canvas.take(rows)
    own = model(**policy.inputs(few), select=few.fill_mask, cache=part).logits.view(2, 24, -1)
    torch.testing.assert_close(own, logits[rows], atol=1e-5, rtol=0)


def test_rows_outside_the_span_cannot_be_selected(policy, model):
    canvas, cache = text_canvas(policy), KeyValueCache()
    model(**policy.inputs(canvas), select=canvas.fill_mask, cache=cache)
    cache.span = (0, 5)
    with pytest.raises(ValueError, match=r"outside the columns \(0, 5\)"):
        model(**policy.inputs(canvas), select=canvas.fill_mask, cache=cache)


class SpanCounter(CountingModel):
    """Counts the columns that each forward computes."""

    def forward(self, *args, cache=None, **kwargs):
        length = kwargs["input_ids"].shape[1]
        span = None if cache is None else cache.span
        self.computed = [*getattr(self, "computed", []), length if span is None else span[1] - span[0]]
        return super().forward(*args, cache=cache, **kwargs)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize(("kind", "widths"), [("none", [0, 0, 0]), ("prefix", [24, 16, 8]), ("dual", [8, 8, 8])])
def test_a_block_is_computed_in_full_once(policy, kind, widths, guidance):
    plain = tiny_model()
    model = SpanCounter(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    canvas = text_canvas(policy, length=24)
    length = canvas.ids.shape[1]
    sample(model, policy, canvas, steps=12, stop="never", kv_cache=kind, guidance_scale=guidance)
    assert model.computed == [count for width in widths for count in (length, *[width or length] * 3)]


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_a_row_does_not_depend_on_its_neighbours_under_a_cache(policy, model, kind, guidance):
    """The threshold makes rows leave a block at different steps."""
    canvas = text_canvas(policy)
    settings = {
        "temperature": 0.7,
        "steps": 24,
        "kv_cache": kind,
        "guidance_scale": guidance,
        "confidence_threshold": 0.2,
    }
    together = SemiAutoregressive(block_length=8, **settings)(model, policy, canvas, generators=streams(4))
    first = together.step_map.masked_fill(~canvas.fill_mask, 99) < 8
    ends = [int(together.step_map[row][first[row]].max()) for row in range(4)]
    assert len(set(ends)) > 1
    for row in range(4):
        alone = SemiAutoregressive(block_length=8, **settings)(
            model, policy, canvas.take(torch.tensor([row])), generators=[streams(4)[row]]
        )
        ours, theirs = written(together, row), written(alone, 0)
        for name in ("ids", "steps", "counted"):
            assert torch.equal(ours[name], theirs[name]), name
        torch.testing.assert_close(ours["logps"], theirs["logps"], atol=1e-5, rtol=0)


def test_shifted_logits_are_computed_from_one_column_earlier(policy):
    shifted = MMaDAPolicy(policy.config, policy.processor)
    shifted.logit_shift = 1
    inside = torch.zeros(2, 12, dtype=torch.bool)
    inside[:, 4:8] = True
    kept = BlockCache("dual", shifted, guided=False)
    rows = torch.arange(2)
    assert kept.ready(0, rows, inside).span is None
    assert kept.ready(0, rows, inside).span == (3, 8)


# ---- commits beside the schedule ----


def test_a_low_threshold_writes_a_block_a_forward(policy, model):
    rollout = sample(model, policy, text_canvas(policy), steps=24, stop="never", confidence_threshold=1e-9)
    assert model.forwards == 3
    assert set(written(rollout, 0)["steps"].tolist()) == {0, 8, 16}


def test_a_threshold_adds_what_is_more_probable_and_nothing_else(policy, model):
    options = {"steps": 24, "stop": "never", "temperature": 1.0}
    canvas = text_canvas(policy)
    threshold = 0.05
    rollout = sample(model, policy, canvas, confidence_threshold=threshold, **options)
    early = 0
    for row in range(4):
        own = written(rollout, row)
        for step in own["steps"].unique().tolist():
            probabilities = own["logps"][own["steps"] == step].exp().sort(descending=True).values
            # The schedule commits one token a step; all others are there because they are probable.
            assert bool((probabilities[1:] > threshold).all())
            early += len(probabilities) - 1
    assert early > 5
    strict = sample(counting_model(), policy, canvas, confidence_threshold=1 - 1e-7, **options)
    plain = sample(counting_model(), policy, canvas, **options)
    assert torch.equal(strict.canvas.ids, plain.canvas.ids)
    assert torch.equal(strict.step_map, plain.step_map)


def test_a_block_without_a_doubtful_hole_is_left_early(policy, model):
    """Bounded by log W, every block is left at once; by 0, none is; in between, what was left had little entropy."""
    canvas = text_canvas(policy)
    options = {"steps": 24, "stop": "never"}
    sample(model, policy, canvas, exit_entropy=math.log(200), **options)
    assert model.forwards == 3
    none = sample(counting_model(), policy, canvas, exit_entropy=0.0, **options)
    assert torch.equal(none.canvas.ids, sample(counting_model(), policy, canvas, **options).canvas.ids)


@torch.no_grad()
def test_the_entropy_that_decides_is_the_largest_of_the_holes(policy, model):
    canvas = text_canvas(policy)
    inputs = {**policy.inputs(canvas), "select": canvas.fill_mask, "token_space": canvas.token_space}
    table = model(**inputs).logits.double().log_softmax(-1)
    entropy = -(table.exp() * table.clamp(min=-1e9)).sum(-1).view(4, 24)[:, :8]
    drawn = model(**inputs, draw=Draw(entropy=True))
    torch.testing.assert_close(drawn.entropy.view(4, 24)[:, :8].double(), entropy, atol=1e-5, rtol=0)
    bound = float(entropy.amax(dim=1).sort().values[1:3].mean())
    leave = entropy.amax(dim=1) <= bound
    assert int(leave.sum()) == 2
    rollout = sample(model, policy, canvas, steps=24, stop="never", exit_entropy=bound)
    for row in range(4):
        at_once = written(rollout, row)["steps"][:8] == 0
        assert int(at_once.sum()) == (8 if leave[row] else 1)


# ---- tokens drawn inside the door ----


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@torch.no_grad()
def test_the_door_draws_from_its_own_logits(policy, model, temperature):
    canvas = text_canvas(policy)
    inputs = {**policy.inputs(canvas), "select": canvas.fill_mask, "token_space": canvas.token_space}
    logits = model(**inputs, temperature=temperature).logits.double()
    table, n = logits.log_softmax(-1), int(canvas.fill_mask.sum())
    likeliest = model(**inputs, temperature=temperature, draw=Draw())
    assert torch.equal(likeliest.tokens, logits.argmax(-1))
    assert likeliest.entropy is None
    uniforms = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = model(**inputs, temperature=temperature, draw=Draw(uniforms=uniforms))
    inverse = (table.exp().cumsum(-1) < uniforms[:, None]).sum(-1)
    assert torch.equal(drawn.tokens, inverse)
    for output in (likeliest, drawn):
        torch.testing.assert_close(
            output.logps.double(), table.gather(1, output.tokens[:, None])[:, 0], atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_reference_draws_are_the_public_codes_gumbel_noise(policy, model):
    """One fp64 uniform for every entry of ``[B, L, V]`` and step; argmax of exp(logit) / (-log u)^T; fp64 softmax."""
    prompt = torch.randint(3, 150, (3, 6), generator=torch.Generator().manual_seed(2))
    steps, block, length, temperature = 8, 8, 16, 0.8
    canvas = golden_canvas(prompt, length, None)
    generator = torch.Generator().manual_seed(7)
    x = torch.cat([prompt, torch.full((3, length), 184)], dim=1)
    for start in range(6, 6 + length, block):
        for _ in range(steps // 2):
            hidden = x == 184
            logits = model(input_ids=x).logits.double()
            u = torch.rand(logits.shape, dtype=torch.float64, generator=generator)
            drawn = (logits.exp() / (-u.log()) ** temperature).argmax(-1)
            confidence = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
            confidence[:, start + block :] = -torch.inf
            confidence = confidence.masked_fill(~hidden, -torch.inf)
            places = confidence.topk(2, dim=1).indices
            x = x.scatter(1, places, drawn.gather(1, places))
    same = torch.Generator().manual_seed(7)
    fill = SemiAutoregressive(steps=steps, block_length=block, temperature=temperature, stop="never", reference=True)
    rollout = fill(model, policy, canvas, generators=[same] * 3)
    assert torch.equal(rollout.canvas.ids, x)
    with pytest.raises(ValueError, match="give the same one for every row"):
        fill(model, policy, canvas, generators=streams(3))


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache": "both"}, "kv_cache='both': choose one of"),
        ({"confidence_threshold": 1.5}, r"confidence_threshold=1.5 is a probability"),
        ({"exit_entropy": -0.1}, "exit_entropy=-0.1 is in nats"),
        ({"confidence_threshold": 0.9, "remasking": "random"}, "remasking='random' does not"),
        ({"kv_cache": "dual", "reference": True}, "reference=True is exact"),
        ({"exit_entropy": 0.0, "reference": True}, "reference=True is exact"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        SemiAutoregressive(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache": "both"}, "kv_cache='both'"),
        ({"confidence_threshold": 2}, "confidence_threshold=2 is a probability"),
        ({"exit_entropy": "low"}, "exit_entropy='low' must be a number"),
        ({"task_overrides": {"mmu": {"exit_entropy": -1}}}, "task_overrides.mmu.exit_entropy=-1"),
    ],
)
def test_runs_are_refused_before_they_start(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        UniGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", **options)


def test_a_setting_that_no_sampler_reads_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"kv_cache='dual' \(sampler 'semi_autoregressive'\)"):
        UniGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", task_overrides={"t2i": {"kv_cache": "dual"}})


def test_a_policy_without_a_cache_says_so(policy, model):
    class Without(MMaDAPolicy):
        supports_cache = False

    own = Without(policy.config, policy.processor)
    with pytest.raises(ValueError, match="Without has no cache"):
        sample(model, own, text_canvas(policy), kv_cache="prefix")
    args = UniGRPOConfig("unused", use_cpu=True, report_to="none", kv_cache="dual", max_completion_length=12)
    row = {"prompt": "w1"}
    check_prompt(policy, args, None, row, "train_dataset[0]")
    with pytest.raises(ValueError, match=r"train_dataset\[0\], task 'text': kv_cache='dual': Without has no cache"):
        check_prompt(own, args, None, row, "train_dataset[0]")
    check_prompt(own, args, None, row, "eval_dataset[0]", held_out=True)


def test_a_hole_that_an_earlier_block_left_is_computed_beside_a_cache(policy):
    """A policy may draw its mask id, and the position stays a hole: later blocks then reach back to it."""
    model = counting_model(mask_lover=True)
    canvas = text_canvas(policy)
    open_space = replace(canvas, token_space=TokenSpace(start=0, stop=canvas.token_space.stop))
    with torch.no_grad():
        model.get_output_embeddings().weight[184] *= 3
    options = {"temperature": 1.0, "steps": 24, "stop": "never"}
    for kind in ("prefix", "dual"):
        rollout = sample(model, policy, open_space, kv_cache=kind, **options)
        left = canvas.fill_mask & (rollout.canvas.ids == policy.mask_token_id)
        assert bool(left.any())


def test_engines_do_not_cast_the_uniforms():
    """FSDP with mixed precision casts tensors, also inside dataclasses, lists and dictionaries."""
    uniforms = torch.rand(5, dtype=torch.float64)
    draw = Draw(uniforms=uniforms)
    _, cast = _cast_forward_inputs(torch.bfloat16, draw=draw, other={"uniforms": uniforms})
    assert cast["other"]["uniforms"].dtype == torch.bfloat16
    assert cast["draw"].uniforms is uniforms
    with pytest.raises(ValueError, match=r"torch.float32; a vocabulary needs torch.float64"):
        Draw(uniforms=uniforms.float())


def test_held_out_answers_are_decoded_exactly(tmp_path):
    shortcuts = {"kv_cache": "dual", "confidence_threshold": 0.5, "exit_entropy": 0.2}
    args = UniGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", **shortcuts)
    algorithms = build_algorithms(args)
    assert algorithms["text"].sampler.kv_cache == "dual"
    pipe = Pipeline(model=None, policy=None, args=args, rewards=None, algorithms=algorithms)
    for task in ("text", "mmu"):
        sampler = eval_pipeline(pipe).algorithms[task].sampler
        assert {key: getattr(sampler, key) for key in shortcuts} == EXACT_DECODING
        assert sampler.temperature == 0


@pytest.mark.parametrize("kind", ["none", "prefix", "dual"])
def test_the_log_says_what_a_cache_is_off(tmp_path, kind):
    """The tiny model is random: with kept keys its log-probabilities are far off, without them they are the sampler's."""
    model, rows = tiny_model(), [{"prompt": "w1 w2"}, {"prompt": "w9 w8 w7"}]
    args = UniGRPOConfig(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        kv_cache=kind,
        max_completion_length=16,
        steps=16,
        block_length=8,
        num_generations=4,
        per_device_train_batch_size=8,
        max_steps=2,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = UniGRPOTrainer(
        model, [low_ids], args, train_dataset=Dataset.from_list(rows * 4), processing_class=tiny_processor()
    )
    # As many stop tokens as an untrained model writes would hide what this is about.
    trainer.policy.stop_token_ids = ()
    found = []
    trainer.add_callback(_Logs(found))
    trainer.train()
    gaps = [logs["sampling/decoding_gap/mean"] for logs in found if "sampling/decoding_gap/mean" in logs]
    assert len(gaps) == (kind != "none")
    assert all(gap > 0.01 for gap in gaps)
    if kind != "none":
        pipe, window = trainer.pipeline(), trainer._window
        # The same rows, as if their log-probabilities had been drawn with exact forwards.
        for row in window.rows:
            for step in row.step_map[row.fill_mask].unique():
                hidden = (row.step_map >= step) & row.fill_mask
                target = (row.step_map == step) & row.fill_mask
                own = Canvas(
                    ids=row.ids[None],
                    fill_mask=row.fill_mask[None],
                    attention_mask=row.attention_mask[None],
                    task="text",
                    token_space=row.token_space,
                )
                with torch.no_grad():
                    scores = score_tokens(trainer.model.eval(), trainer.policy, own, hidden[None], target[None])
                row.sampling_logps[target] = scores.logps[0][target]
        metrics = Metrics(by_task=False)
        log_decoding_gap(pipe, window, 0, ["text"], metrics)
        assert metrics.flush()["sampling/decoding_gap/max"] < 1e-4


class _Logs(TrainerCallback):
    def __init__(self, found: list) -> None:
        self.found = found

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.found.append(dict(logs))

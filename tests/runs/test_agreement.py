"""How far approximate decoding agrees with exact decoding: the measures' laws, and the shipped policies.

Random weights cannot tell a right cache from a wrong one, so everything about caches is measured on policies that have
learned something.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from unigrpo import UniGRPOConfig, load_policy
from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.runs.agreement.command import agreement
from unigrpo.runs.agreement.measures import Match, counted, match, merged_stages, sampling_gap, stage_logps
from unigrpo.runs.agreement.report import draw_scatter
from unigrpo.runs.agreement.variants import usable, variants_of
from unigrpo.runs.cli import main
from unigrpo.runs.recipe import load_recipe
from unigrpo.samplers import SemiAutoregressive
from unigrpo.samplers.kv_cache import BlockCache
from unigrpo.toy import arithmetic
from unigrpo.types import Canvas, Rollout, TokenSpace, keyed_generator

from ..support import ROOT


RECIPES = ROOT / "recipes"
QUICKSTART = str(RECIPES / "quickstart.yaml")
RUNNING_SUMS = ["model.path=builtin:running_sums", "eval_datasets=[{path: 'builtin:running_sums', split: test}]"]


def written(*answers: list[int], length: int = 4) -> Rollout:
    """A rollout whose rows are one prompt token 9, the given tokens, and padding 0."""
    ids = torch.tensor([[9, *own, *[0] * (length - len(own))] for own in answers])
    places = torch.arange(length + 1)[None]
    counts = torch.tensor([len(own) for own in answers])[:, None]
    fill = (places > 0).expand_as(ids)
    canvas = Canvas(
        ids=ids,
        fill_mask=fill,
        attention_mask=torch.ones_like(fill),
        task="text",
        token_space=TokenSpace(start=0, stop=10),
    )
    return Rollout(
        canvas=canvas,
        completion_mask=fill & (places <= counts),
        step_map=torch.zeros_like(ids),
        sampling_logps=torch.zeros(ids.shape),
        completions=[""] * len(answers),
    )


def settings(**values):
    return UniGRPOConfig(output_dir="unused", report_to="none", use_cpu=True, **values).for_task("text")


def measured(tmp_path_factory, overrides: list[str], **options) -> dict:
    folder = tmp_path_factory.mktemp("agreement")
    result = agreement(load_recipe(QUICKSTART, overrides), output_dir=str(folder), **options)
    assert json.loads((folder / "agreement.json").read_text()) == result
    return result


def lines(result: dict, task: str = "text") -> dict[str, dict]:
    return {line["decoding"]: line for line in result["tasks"][task]["decoding"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    return measured(tmp_path_factory, ["model.path=builtin:arithmetic_trained"], limit=16)


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> dict:
    return measured(tmp_path_factory, RUNNING_SUMS, limit=64)


@pytest.fixture(scope="module")
def policy():
    return load_policy("builtin:arithmetic_trained")


def rollout_of(loaded, rows: int = 8, **options) -> tuple[Rollout, SemiAutoregressive]:
    sampler = SemiAutoregressive(**{"steps": 16, "block_length": 4, "temperature": 0.0, **options})
    canvas = loaded.policy.encode(arithmetic.problems("test", rows), max_completion_length=16)
    streams = [keyed_generator("test", row) for row in range(rows)]
    return sampler(loaded.model, loaded.policy, canvas, generators=streams), sampler


def test_equal_tokens_are_counted_over_the_exact_completions():
    exact = written([1, 2, 3], [4, 5], [6], [7, 8])
    other = written([1, 2, 4], [4, 5], [6, 6], [0, 7, 8])
    # Row by row: 2 of 3; 2 of 2; 1 of 1, but longer; 0 of 2, because a shifted answer is another one.
    assert match(exact, other) == Match(tokens=8, equal_tokens=5, rows=4, equal_rows=1)
    assert match(exact, exact) == Match(tokens=8, equal_tokens=8, rows=4, equal_rows=4)
    assert match(exact, other) + match(exact, exact) == Match(tokens=16, equal_tokens=13, rows=8, equal_rows=5)


def test_every_shortcut_is_measured_alone_and_the_recipes_own_with_them():
    names = ["exact", "prefix", "dual", "threshold 0.95", "threshold 0.9", "exit entropy 0.1", "dual + threshold 0.9"]
    assert [variant.name for variant in variants_of(settings())] == names
    assert [variant.of_recipe for variant in variants_of(settings())] == [True] + [False] * 6
    own = variants_of(settings(kv_cache="dual", confidence_threshold=0.8), temperature=0.5)
    assert [variant.name for variant in own] == [*names, "dual + threshold 0.8"]
    assert [variant.name for variant in own if variant.of_recipe] == ["dual + threshold 0.8"]
    assert {variant.sampler.temperature for variant in own} == {0.5}
    listed = [variant.of_recipe for variant in variants_of(settings(kv_cache="dual"))]
    assert listed == [False, False, True, False, False, False, False]
    by_chance = variants_of(settings(remasking="random"), entropies=())
    assert [variant.name for variant in by_chance] == ["exact", "prefix", "dual"]


def test_caches_are_left_out_where_a_policy_has_none():
    kept, notes = usable(variants_of(settings(kv_cache="dual")), SimpleNamespace(supports_cache=False))
    assert [variant.name for variant in kept] == ["exact", "threshold 0.95", "threshold 0.9", "exit entropy 0.1"]
    assert "SimpleNamespace keeps no keys and values" in notes[0]


@pytest.mark.smoke
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_exact_log_probabilities_are_those_of_the_draw(policy, temperature):
    rollout, sampler = rollout_of(policy, temperature=temperature, stop="never")
    gap = sampling_gap(policy.model, policy.policy, rollout, sampler)
    assert gap.shape == (int(rollout.completion_mask.sum()),)
    assert gap.max() <= 1e-5
    off = replace(rollout, sampling_logps=rollout.sampling_logps - 0.25)
    assert (sampling_gap(policy.model, policy.policy, off, sampler) - 0.25).abs().max() <= 1e-5


def test_all_steps_merged_are_one_forward_with_the_whole_answer_hidden(policy):
    rollout, sampler = rollout_of(policy)
    canvas = rollout.canvas
    merged = stage_logps(policy.model, policy.policy, rollout, merged_stages(policy.policy, rollout, 100), sampler)
    whole = score_tokens(policy.model, policy.policy, canvas, canvas.fill_mask, rollout.completion_mask).logps
    assert torch.allclose(merged, whole[rollout.completion_mask], atol=1e-6)
    counts = [merged_stages(policy.policy, rollout, shrink).forwards for shrink in (1, 2, 100)]
    steps = [len(own[own >= 0].unique()) for own in rollout.step_map]
    assert counts == [sum(steps), sum(-(-own // 2) for own in steps), 8]


def test_work_counts_rows_and_the_positions_computed(policy):
    rollout, _ = rollout_of(policy, rows=2)
    length = rollout.canvas.ids.shape[1]
    with counted(policy.model) as work:
        score_tokens(policy.model, policy.policy, rollout.canvas, rollout.completion_mask, rollout.completion_mask)
    assert (work.forwards, work.trunk_tokens) == (2, 2 * length)
    with counted(policy.model) as cached:
        rollout_of(policy, rows=1, kv_cache="dual", stop="never")
    # Sixteen steps in four blocks: each block's first is whole, the other three compute its four positions.
    own = len(policy.policy.encode(arithmetic.problems("test", 1), max_completion_length=16).ids[0])
    assert (cached.forwards, cached.trunk_tokens) == (16, 4 * own + 12 * 4)


def test_fast_decoding_agrees_on_a_policy_that_is_sure(trained):
    decoding = lines(trained)
    exact = decoding["exact"]
    assert exact["agreement"] == exact["equal_answers"] == exact["speed_up"] == 1.0
    assert exact["accuracy"] >= 0.95
    assert exact["logp_gap"] <= 1e-5
    for name in ("prefix", "dual", "threshold 0.95", "threshold 0.9", "exit entropy 0.1", "dual + threshold 0.9"):
        assert decoding[name]["agreement"] >= 0.95, name
        assert decoding[name]["accuracy"] >= 0.95, name
    assert decoding["dual"]["trunk_tokens"] < decoding["prefix"]["trunk_tokens"] < 0.6 * exact["trunk_tokens"]
    assert decoding["threshold 0.9"]["forwards"] < 0.5 * exact["forwards"]
    assert exact["logp_gap"] < decoding["dual"]["logp_gap"] < 0.05


def test_merged_steps_save_forwards_and_differ_a_little(trained):
    merged = {line["shrink"]: line for line in trained["tasks"]["text"]["merged_steps"]}
    assert merged[1]["logp_difference"] == merged[1]["saved"] == 0.0
    assert [merged[shrink]["saved"] > least for shrink, least in ((2, 0.4), (4, 0.6), (8, 0.8))] == [True] * 3
    assert all(0 < merged[shrink]["logp_difference"] < 0.05 for shrink in (2, 4, 8))


@pytest.mark.slow
def test_agreement_tells_a_cache_from_a_stale_one(sums, tmp_path_factory, monkeypatch):
    for name in ("prefix", "dual", "threshold 0.9"):
        assert lines(sums)[name]["agreement"] >= 0.95, name
        assert lines(sums)[name]["equal_answers"] >= 0.75, name
        assert lines(sums)[name]["logp_gap"] < 0.1, name
    fresh = BlockCache.ready

    def never_again(self, block, rows, start, stop):
        """Later blocks go on with the keys and values of the first."""
        if self.block >= 0:
            self.block = block
        return fresh(self, block, rows, start, stop)

    monkeypatch.setattr(BlockCache, "ready", never_again)
    stale = measured(tmp_path_factory, RUNNING_SUMS, limit=64, thresholds=(), entropies=())
    for name in ("prefix", "dual"):
        assert lines(stale)[name]["agreement"] < lines(sums)[name]["agreement"] - 0.02, name
        assert lines(stale)[name]["equal_answers"] < 0.5, name
        assert lines(stale)[name]["logp_gap"] > 0.3, name


def test_the_command_leaves_numbers_and_a_picture(tmp_path, capsys):
    argv = [
        "agreement",
        QUICKSTART,
        "model.path=builtin:arithmetic_trained",
        "--limit",
        "4",
        "--output",
        str(tmp_path),
    ]
    assert main([*argv, "--thresholds", "0.7", "--entropies", "0.5", "kv_cache=dual", "exit_entropy=0.2"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "agreement.json").read_text())
    names = ["exact", "prefix", "dual", "threshold 0.7", "exit entropy 0.5", "dual + threshold 0.7"]
    assert list(lines(result)) == [*names, "dual + exit entropy 0.2"]
    assert all(
        name in printed for name in [*names, "dual + exit entropy 0.2 *", "trajectory_shrink", "0.7 M parameters"]
    )
    assert max(len(line) for line in printed.splitlines()) <= 120
    assert (tmp_path / "agreement.png").stat().st_size > 5_000
    assert result["tasks"]["text"]["completions"] == 4
    assert draw_scatter(result, tmp_path / "again.png")


def test_pictures_are_asked_about_and_those_to_draw_are_left_out(tmp_path, capsys):
    argv = ["agreement", str(RECIPES / "quickstart_mixed.yaml"), "--limit", "1", "--output", str(tmp_path)]
    assert main([*argv, "--temperature", "1", "--thresholds", "0.9", "--entropies", "0.1"]) == 0
    assert "480 rows of task 't2i' are left out" in capsys.readouterr().out
    result = json.loads((tmp_path / "agreement.json").read_text())
    assert list(result["tasks"]) == ["mmu", "text"]
    assert lines(result, "mmu")["exact"]["agreement"] == 1.0
    assert lines(result, "mmu")["exact"]["logp_gap"] <= 1e-5


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("quickstart_image.yaml", [], "are for text and image understanding"),
        ("quickstart.yaml", ["eval_datasets=[]"], "no eval_datasets"),
        ("quickstart.yaml", ["sampler=left_to_right"], "set sampler=semi_autoregressive"),
        ("quickstart.yaml", ["--thresholds", "1.5"], "must lie in"),
        ("quickstart.yaml", ["--entropies=-1"], "must not be negative"),
        ("quickstart.yaml", ["--limit=-1"], "limit=-1"),
        ("quickstart.yaml", ["--model", "builtin:nothing"], "shipped checkpoints are"),
    ],
)
def test_mistakes_are_told_before_anything_runs(recipe, words, message, tmp_path, capsys):
    assert main(["agreement", str(RECIPES / recipe), *words, f"output_dir={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("main_input", ["input_ids", "inputs_embeds", None])
def test_work_is_counted_whatever_the_input_is_called(main_input):
    class Model(torch.nn.Module):
        def forward(self, bias=None, **inputs):
            return None

    model, own = Model(), torch.zeros(3, 7, dtype=torch.int64)
    if main_input is not None:
        model.main_input_name = main_input
    with counted(model) as work:
        model(**{"bias": None} | ({main_input: own, "mask": own[:, :2]} if main_input else {"tokens": own}))
        model(own)
    assert (work.forwards, work.trunk_tokens) == (6, 42)

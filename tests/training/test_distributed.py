"""Runs on several processes are the run on one: losses, gradients, rollouts and weights, under DDP and FSDP2."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unigrpo.training.engines import settle_precision

from ..support.divisions import (
    BF16,
    MODULE,
    PAIR,
    assert_exact_on_policy,
    assert_resumed,
    distance,
    sizes,
    told,
    union,
)
from ..support.engines import ENGINES, NEEDS_CPU_0, NEEDS_FSDP2, evaluate, train
from ..support.processes import played


pytestmark = pytest.mark.processes

CLASSES = [(1, 1, 8), (1, 2, 4), (1, 4, 2), (2, 1, 4), (2, 2, 2), (2, 4, 1), (4, 1, 2), (4, 2, 1)]
"""Processes, accumulation, micro-batch: eight answers an optimizer step each way."""


def assert_same(own: list[dict[str, Any]], alone: dict[str, Any], tolerance: float = 2e-5) -> None:
    """What several processes left is what one left: rollouts exactly, numbers within rounding."""
    assert union([rank["rollouts"] for rank in own]) == alone["rollouts"]
    for rank in own:
        for (loss, norm, reward), (loss_alone, norm_alone, reward_alone) in zip(
            rank["history"], alone["history"], strict=True
        ):
            # fp32 sums in another order, through up to three steps of Adam with gradients of norm 100.
            assert loss == pytest.approx(loss_alone, rel=tolerance * 10, abs=tolerance)
            assert norm == pytest.approx(norm_alone, rel=tolerance * 10)
            assert reward == reward_alone
        for step, step_alone in zip(rank["gradients"], alone["gradients"], strict=True):
            assert step.keys() == step_alone.keys()
            assert distance(step, step_alone) < tolerance * 10
        assert distance(rank["weights"], alone["weights"]) < tolerance * 10
        for step, step_alone in zip(rank["metrics"], alone["metrics"], strict=True):
            assert step == pytest.approx(step_alone, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_two_processes_are_one(tmp_path, lora):
    alone = train(0, "ddp", lora=lora, **sizes(1, 8))
    assert alone["engine"]["kind"] == "NO"
    assert any(loss for loss, _, _ in alone["history"]) and len(alone["history"]) == 4
    for _, accumulation, batch in [own for own in CLASSES if own[0] == 1][1:]:
        assert_same([train(0, "ddp", lora=lora, **sizes(accumulation, batch))], alone)
        told("none", lora, 1, accumulation, batch)
    two = [own for own in CLASSES if own[0] == 2]
    scenes = [("train", {"engine": "ddp", "lora": lora, **sizes(a, b)}) for _, a, b in two]
    for division, ranks in zip(two, played(2, tmp_path, MODULE, *scenes), strict=True):
        assert all(own["engine"]["wrapper"] == "DistributedDataParallel" for own in ranks)
        assert_same(ranks, alone)
        told("ddp", lora, *division)


TERMS = {"clip": [0.2, 0.8], "schedule": {"start": 0.5, "end": 2.0, "steps": [0, 4]}}


@pytest.mark.parametrize("scale", ["standardise", "win_rate"])
def test_rewards_enter_the_sum_alike_on_all_processes(tmp_path, scale):
    """The scale of a window and the rivals of a group that straddles processes are those of all of them."""
    terms = {"reward_terms": [{**TERMS, scale: True}], "scale_rewards": "none"}
    alone, plain = train(0, "ddp", **terms, **sizes(1, 8)), train(0, "ddp", scale_rewards="none", **sizes(1, 8))
    assert [own[0] for own in alone["history"]] != [own[0] for own in plain["history"]]
    (ranks,) = played(2, tmp_path, MODULE, ("train", {"engine": "ddp", **terms, **sizes(1, 4)}))
    assert_same(ranks, alone)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", [{"sft_weight": 0.5}, {"from_adapter": True, "beta": 0.2}], ids=["given", "adapter"])
def test_so_are_runs_with_given_answers_and_from_a_trained_adapter(tmp_path, engine, what):
    """Given answers are numbered like sampled ones; the reference of a trained adapter is its frozen copy."""
    alone = train(0, "ddp", **what, **sizes(1, 8))
    if "from_adapter" in what:
        assert all("lora_" in name and ".default." in name for name in alone["weights"])
    assert_same([train(0, "ddp", **what, **sizes(2, 4))], alone)
    (ranks,) = played(2, tmp_path, MODULE, ("train", {"engine": engine, **what, **sizes(2, 2)}))
    assert_same(ranks, alone)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_four_processes_are_one(tmp_path, engine, lora):
    """A group of eight answers then lies on two processes."""
    alone = train(0, "ddp", lora=lora, **sizes(1, 8))
    four = [own for own in CLASSES if own[0] == 4]
    scenes = [("train", {"engine": engine, "lora": lora, **sizes(a, b)}) for _, a, b in four]
    for number, ranks in enumerate(played(4, tmp_path, MODULE, *scenes)):
        if engine == "fsdp2":
            assert_sharded(ranks)
        assert_same(ranks, alone)
        told(engine, lora, *four[number])


UNITS = ["transformer.wte", *(f"transformer.blocks.{number}" for number in range(3)), "transformer.ff_out"]
"""What accelerate's FSDP2 gathers and frees by itself: embedding, blocks, head. The root holds the last norm."""


def assert_sharded(ranks: list[dict[str, Any]]) -> None:
    for own in ranks:
        assert own["engine"]["kind"] == "FSDP2" and own["engine"]["processes"] == len(ranks)
        assert [name.rpartition("model.")[2] for name in own["engine"]["sharded_units"]] == ["", *UNITS]
        assert own["dtensors"] >= 30


@NEEDS_FSDP2
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_sharded_weights_change_nothing(tmp_path, lora):
    """FSDP2, with the reference of full fine-tuning sharded too, and of LoRA the sharded model without its adapter."""
    alone = train(0, "ddp", lora=lora, **sizes(1, 8))
    divisions = ((1, 4), (2, 2))
    scenes = [("train", {"engine": "fsdp2", "lora": lora, **sizes(a, b)}) for a, b in divisions]
    for division, ranks in zip(divisions, played(2, tmp_path, MODULE, *scenes), strict=True):
        assert_sharded(ranks)
        assert_same(ranks, alone)
        told("fsdp2", lora, 2, *division)


def pair(tmp_path, engine: str, **arguments: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A run on two processes with one group each, and the same on one process."""
    alone = train(0, "ddp", **PAIR, per_device_train_batch_size=8, **arguments)
    scene = ("train", {"engine": engine, **PAIR, "per_device_train_batch_size": 4, **arguments})
    (ranks,) = played(2, tmp_path, MODULE, scene)
    return ranks, alone


SPANS = ["picture", "thought"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("tasks", "seen"),
    [
        (["text", "t2i", "mmu", "t2i"], [[["text"], ["mmu"]], [["t2i"], ["t2i"]]]),
        (["r2i", "text", "t2i", "r2i"], [[SPANS, ["t2i"]], [["text"], SPANS]]),
    ],
    ids=["one canvas", "thoughts"],
)
def test_each_process_may_have_a_task_of_its_own(tmp_path, engine, tasks, seen):
    """Text and its estimated KL on one process while the other draws, with the exact KL; then a question about a picture. Or one
    thinks and draws, two canvases an answer, while the other writes."""
    # Adam makes whole steps of gradients that are mere rounding: small ones, so that they turn no token of the second window.
    ranks, alone = pair(tmp_path, engine, tasks=tasks, count=4, beta=0.04, learning_rate=1e-5)
    assert [own["engine"]["processes"] for own in ranks] == [2, 2]
    assert [own["tasks"] for own in ranks] == seen
    assert_same(ranks, alone)


def test_tokens_of_all_processes_are_the_divisor(tmp_path):
    """With "dapo" a token weighs the same wherever its answer lies: the divisor is the optimizer step's, not a process's."""
    ranks, alone = pair(tmp_path, "ddp", loss_type="dapo", beta=0.04)
    assert_same(ranks, alone)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_without_a_gradient_of_its_own_keeps_step(tmp_path, engine):
    """All answers of the first process are worth the same, and there is no KL: it has nothing to learn from."""
    ranks, alone = pair(tmp_path, engine, reward="equal_at_first", beta=0.0)
    assert [bool(own["idle_rows"]) for own in ranks] == [True, False]
    assert_same(ranks, alone)
    assert alone["history"][0][1] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_whose_answers_end_early_waits(tmp_path, engine):
    """Every answer of the second process stops in its first block, none of the first process does."""
    free = train(0, "ddp", **PAIR, per_device_train_batch_size=8, max_steps=1)
    answers = {index: ids[-12:] for index, ids in free["rollouts"][0].items()}
    seen = {token for index in range(4) for token in answers[index]}
    stops = {next(token for token in answers[index][:6] if token not in seen) for index in range(4, 8)}
    ranks, alone = pair(tmp_path, engine, stop_ids=sorted(stops), max_steps=1)
    assert alone["lengths"] == {index: 12 if index < 4 else alone["lengths"][index] for index in range(8)}
    assert all(alone["lengths"][index] <= 6 for index in range(4, 8))
    assert_same(ranks, alone)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_scores_leave_the_model_in_fp32(tmp_path, engine, lora):
    """With ``bf16=True``: text with an estimated KL, pictures with the exact one, whose reference goes into the forward."""
    arguments = {"engine": engine, "lora": lora, **BF16}
    scenes = [("train", arguments), ("train", {**arguments, "tasks": ["t2i"] * 4, "count": 4})]
    text, drawn = played(2, tmp_path, MODULE, *scenes)
    assert_exact_on_policy(text + drawn)
    alone = train(0, "ddp", lora=lora, **{**BF16, "per_device_train_batch_size": 8})
    assert alone["dtypes"] == ["torch.float32"]
    if engine == "fsdp2":
        assert_sharded(text)
        assert_sharded(drawn)
        assert all(own["precision"] == ["torch.bfloat16", "torch.float32", "None"] for own in text)
    # bf16 weights (FSDP2) and autocast (DDP) round differently, so some answers are other draws of the same law. Rewards
    # spread by 0.15: two means over 16 answers are within three standard errors of their difference.
    assert text[0]["history"][0][2] == pytest.approx(alone["history"][0][2], abs=3 * 0.15 * (2 / 16) ** 0.5)
    assert all(norm > 0 for _, norm, _ in text[0]["history"])


@pytest.mark.parametrize("engine", ENGINES)
def test_held_out_answers_are_shared_and_everyone_has_them(tmp_path, engine):
    """Seven answers in batches of two: uneven over two processes."""
    alone = evaluate(0, "ddp", batch=4)
    assert len(alone["ids"]) == 7 and alone["sizes"] == [2, 2, 2, 1]
    (ranks,) = played(2, tmp_path, MODULE, ("evaluate", {"engine": engine, "batch": 2}))
    assert [own["sizes"] for own in ranks] == [[2, 2], [2, 1]]
    for own in ranks:
        assert own["ids"] == alone["ids"]
        assert own["metrics"] == pytest.approx(alone["metrics"])


def test_fsdp2_asks_for_an_accelerate_that_resumes_adapters(monkeypatch):
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=2)))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.14.0")
    with pytest.raises(ValueError, match=r'accelerate 1.14.0.*pip install "accelerate>=1.15"'):
        settle_precision(accelerator)


@NEEDS_CPU_0
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_resumed_run_goes_on_inside_its_window(tmp_path, engine, lora):
    (ranks,) = played(
        2, tmp_path, MODULE, ("resumed", {"engine": engine, "lora": lora, "folder": str(tmp_path / "run")})
    )
    assert_resumed(ranks, exactly=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_number_on_one_process_stops_all_before_the_step(tmp_path, engine):
    faults = ["loss", "gradient"]
    scenes = [("diverging", {"engine": engine, "what": what, "folder": str(tmp_path / what)}) for what in faults]
    for what, ranks in zip(faults, played(2, tmp_path, MODULE, *scenes), strict=True):
        assert [own["steps"] for own in ranks] == [2, 2]
        assert "row" in ranks[1]["error"] and all("step 3 is not finite" in own["error"] for own in ranks)
        assert (tmp_path / what / "checkpoint-2" / "unigrpo_manifest.json").exists()


def test_a_reward_that_fails_in_an_evaluation_ends_it_on_every_process(tmp_path):
    """Or, with ``reward_error`` "none", is counted on every process, and no mean is made of answers with fewer rewards."""
    ended, counted = played(
        2, tmp_path, MODULE, *(("failing_evaluation", {"on_error": kind}) for kind in ("raise", "none"))
    )
    assert "reward 'fails' raised RuntimeError: not this one" in ended[1]["error"]
    assert "failed on another process" in ended[0]["error"]
    for own in counted:
        assert own["eval_rewards/fails/errors"] == 2 and own["eval_rewards/one/errors"] == 0
        assert own["eval_reward"] == 2.0 and own["eval_rewards/one/mean"] == own["eval_rewards/fails/mean"] == 1.0

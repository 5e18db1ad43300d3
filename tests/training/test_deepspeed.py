"""DeepSpeed ZeRO-2 and ZeRO-3 on processors: the run on two processes is the run on one."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

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
from ..support.engines import train
from ..support.processes import played


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason='needs DeepSpeed: pip install -e ".[deepspeed]"'
)
STAGES = ["zero2", "zero3"]


@pytest.fixture(autouse=True)
def on_processors(monkeypatch):
    """DeepSpeed asks for CUDA where torch was built with it, unless told otherwise."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def assert_same_but_gradients(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Rollouts, losses, gradient norms and weights; DeepSpeed keeps the gradients themselves to itself."""
    assert union([rank["rollouts"] for rank in ranks]) == alone["rollouts"]
    for rank in ranks:
        for own, other in zip(rank["history"], alone["history"], strict=True):
            assert own[0] == pytest.approx(other[0], abs=2e-5)
            assert own[1] == pytest.approx(other[1], rel=2e-4)
            assert own[2] == other[2]
        assert distance(rank["weights"], alone["weights"]) < 2e-4


def assert_engine(ranks: list[dict[str, Any]], stage: str) -> None:
    for own in ranks:
        assert (own["engine"]["kind"], own["engine"]["wrapper"]) == ("DEEPSPEED", "DeepSpeedEngine")
        assert (own["engine"]["processes"], own["engine"]["zero_stage"]) == (2, int(stage[-1]))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("stage", STAGES)
def test_zero_changes_nothing(tmp_path, stage, lora):
    """Two units a micro-step and two micro-steps a step: the engine must step once."""
    alone = train(0, "ddp", lora=lora, **sizes(1, 8))
    divisions = ((1, 4), (2, 2))
    scenes = [("train", {"engine": stage, "lora": lora, **sizes(a, b)}) for a, b in divisions]
    for division, ranks in zip(divisions, played(2, tmp_path, MODULE, *scenes), strict=True):
        assert_engine(ranks, stage)
        assert_same_but_gradients(ranks, alone)
        told(stage, lora, 2, *division)


MIXED = {**PAIR, "tasks": ["text", "t2i", "mmu", "t2i"], "count": 4, "beta": 0.04}


@pytest.mark.parametrize("stage", STAGES)
def test_each_process_may_have_a_task_of_its_own(tmp_path, stage):
    """ZeRO-3 compares the modules that processes visit, so there both kinds of KL cannot meet."""
    arguments = {**MIXED, **({"kl_estimator": "k3"} if stage == "zero3" else {})}
    alone = train(0, "ddp", per_device_train_batch_size=8, **arguments)
    scene = ("train", {"engine": stage, "per_device_train_batch_size": 4, **arguments})
    (ranks,) = played(2, tmp_path, MODULE, scene)
    assert_engine(ranks, stage)
    assert_same_but_gradients(ranks, alone)


def test_zero3_refuses_two_kinds_of_kl(tmp_path):
    scene = ("train", {"engine": "zero3", "per_device_train_batch_size": 4, **MIXED})
    with pytest.raises(
        Exception, match=r"ValueError: kl_estimator: ZeRO-3 needs.*\['mmu', 'text'\] estimate.*task_overrides"
    ):
        played(2, tmp_path, MODULE, scene)


@pytest.mark.parametrize("stage", STAGES)
def test_scores_leave_the_model_in_fp32(tmp_path, stage):
    adapter, drawn = {"lora": True}, {"tasks": ["t2i"] * 4, "count": 4}
    scenes = [("train", {"engine": stage, **BF16, **own}) for own in (adapter, drawn)]
    for ranks in played(2, tmp_path, MODULE, *scenes):
        assert_engine(ranks, stage)
        assert all(own["engine_dtype"] == "torch.bfloat16" for own in ranks)
        assert_exact_on_policy(ranks)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_goes_on_inside_its_window(tmp_path, stage, lora):
    (ranks,) = played(
        2, tmp_path, MODULE, ("resumed", {"engine": stage, "lora": lora, "folder": str(tmp_path / "run")})
    )
    assert_resumed(ranks, exactly=False)


@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_loss_stops_before_the_engine_steps_and_a_bad_gradient_after(tmp_path, stage):
    faults = ["loss", "gradient"]
    scenes = [("diverging", {"engine": stage, "what": what, "folder": str(tmp_path / what)}) for what in faults]
    loss, gradient = played(2, tmp_path, MODULE, *scenes)
    assert [own["steps"] for own in loss + gradient] == [2] * 4
    assert all("step 3 is not finite" in own["error"] and "applied" not in own["error"] for own in loss)
    assert (tmp_path / "loss" / "checkpoint-2" / "unigrpo_manifest.json").exists()
    assert all("DeepSpeed has applied it already" in own["error"] for own in gradient)

"""Processes whose forwards wait for each other make the same number of them in a rollout, however unequal their work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from unigrpo.config.build import build_algorithms
from unigrpo.models import MMaDAPolicy
from unigrpo.models.lockstep import forwards_meet, lockstep, one_token
from unigrpo.rollout.pipeline import Pipeline
from unigrpo.rollout.rewards import RewardSet
from unigrpo.rollout.sample import sample_answers

from ..support.configs import config
from ..support.processes import played
from ..support.tiny import low_ids, prompts, tiny_model, tiny_processor
from ..support.tiny_decoders import tiny_decoder


WORK = [5, 2, 0]
"""Forwards that each of three processes has to make."""
PROMPTS = [prompts(3, (2, 9, 4)), []]
"""The prompts of two processes; one has none, as in a refill of the other's groups."""


class Together(nn.Module):
    """A forward that waits for every process, as one over sharded weights does, and returns what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shapes = nn.Parameter(torch.zeros(())), []

    def forward(self, input_ids, attention_mask, position_ids=None, select=None):
        assert not self.training and not torch.is_grad_enabled()
        dist.all_reduce(torch.zeros(()))
        self.shapes.append(tuple(input_ids.shape))
        return input_ids.sum()


def pipeline(model: nn.Module, **fields) -> Pipeline:
    args = config(max_completion_length=12, steps=6, block_length=6)
    policy = MMaDAPolicy(tiny_model().config, tiny_processor())
    rewards, algorithms = RewardSet(functions=[low_ids]), build_algorithms(args)
    return Pipeline(model=model, policy=policy, args=args, rewards=rewards, algorithms=algorithms, **fields)


def ids_of(samples) -> list[list[int]]:
    return [sample.rollout.canvas.ids[0].tolist() for sample in samples]


def unequal_counts(rank: int) -> dict:
    """Toy forwards: 5, 2 and 0 in one block, then a block without any."""
    model = Together().eval()
    policy = pipeline(model).policy
    sums = []
    with torch.no_grad():
        for work in (WORK[rank], 0):
            with lockstep(model, policy, "cpu") as together:
                assert together.training is False
                for number in range(work):
                    ids = torch.full((2, 3), 10 * rank + number)
                    sums.append(int(together(input_ids=ids, attention_mask=ids > -1)))
    return {"shapes": model.shapes, "sums": sums}


def sharded_rollout(rank: int) -> dict:
    """FSDP2 over the tiny model: three answers on one process, none on the other, twice."""
    model = tiny_model()
    for block in model.model.transformer["blocks"]:
        fully_shard(block)
    fully_shard(model)
    pipe = pipeline(model, forwards_meet=forwards_meet(model))
    rounds = []
    for turn in range(2):
        mine = rank == turn
        rounds.append(sample_answers(pipe, PROMPTS[0 if mine else 1], 3, indices=[0, 1, 2] if mine else []))
        # What comes next meets here, and not in a forward that one process has left over.
        dist.all_reduce(torch.zeros(()))
    return {"meet": pipe.forwards_meet, "ids": [ids_of(samples) for samples in rounds]}


def blocks_pipeline(model: nn.Module, policy: Any, **fields) -> Pipeline:
    args = config(sampler="block", order="dynamic", confidence_threshold=0.1, max_completion_length=12, steps=12)
    policy.stop_token_ids = tuple(range(100, 140))
    rewards, algorithms = RewardSet(functions=[low_ids]), build_algorithms(args)
    return Pipeline(model=model, policy=policy, args=args, rewards=rewards, algorithms=algorithms, **fields)


def rollout_in_blocks(rank: int, engine: str) -> dict:
    """Three answers of a block-causal decoder on one process and none on the other, twice, each block beside kept keys."""
    model, policy = tiny_decoder("blocks", block_anchor="start")
    counts: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda *_: counts.append(1))
    if engine == "fsdp2":
        for part in (*model.model.layers, model):
            fully_shard(part)
    else:
        model = DistributedDataParallel(model)
    pipe = blocks_pipeline(model, policy, forwards_meet=forwards_meet(model))
    rounds, made = [], []
    for turn in range(2):
        mine, before = rank == turn, len(counts)
        rounds.append(sample_answers(pipe, PROMPTS[0 if mine else 1], 3, indices=[0, 1, 2] if mine else []))
        made.append(len(counts) - before)
        dist.all_reduce(torch.zeros(()))
    return {"ids": [ids_of(samples) for samples in rounds], "forwards": made}


def replicated_rollout(rank: int) -> dict:
    """DDP: a process rolls out by itself; the parameters are synchronised in the backward alone."""
    model = DistributedDataParallel(tiny_model())
    samples = sample_answers(pipeline(model), PROMPTS[rank], 3, indices=[0, 1, 2][: len(PROMPTS[rank])])
    dist.all_reduce(torch.zeros(()))
    with_buffer = Together()
    with_buffer.register_buffer("mean", torch.zeros(3))
    buffers = [DistributedDataParallel(with_buffer, broadcast_buffers=own) for own in (True, False)]
    return {"meet": [forwards_meet(own) for own in (model, *buffers)], "ids": ids_of(samples)}


@pytest.mark.processes
def test_unequal_work_is_filled_up(tmp_path):
    (ranks,) = played(3, tmp_path, __name__, ("unequal_counts", {}))
    assert [own["sums"] for own in ranks] == [[0, 6, 12, 18, 24], [60, 66], []]
    assert ranks[0]["shapes"] == [(2, 3)] * 5
    assert ranks[1]["shapes"] == [(2, 3)] * 2 + [(1, 3)] * 3, "the first row of what it read"
    assert ranks[2]["shapes"] == [(1, 1)] * 5, "a process without any canvas"


@pytest.mark.processes
def test_rollouts_over_real_engines(tmp_path):
    alone = ids_of(sample_answers(pipeline(tiny_model()), PROMPTS[0], 3))
    sharded, replicated = played(2, tmp_path, __name__, ("sharded_rollout", {}), ("replicated_rollout", {}))
    assert [own["meet"] for own in sharded] == [True, True]
    assert [own["ids"] for own in sharded] == [[alone, []], [[], alone]]
    assert [own["meet"] for own in replicated] == [[False, True, False]] * 2
    assert [own["ids"] for own in replicated] == [alone, []]


@pytest.mark.processes
def test_rollouts_beside_kept_keys_over_real_engines(tmp_path):
    model, policy = tiny_decoder("blocks", block_anchor="start")
    samples = sample_answers(blocks_pipeline(model, policy), PROMPTS[0], 3)
    alone = ids_of(samples)
    assert len({int(own.rollout.completion_mask.sum()) for own in samples}) > 1, "answers end one by one"
    scenes = [("rollout_in_blocks", {"engine": engine}) for engine in ("fsdp2", "ddp")]
    sharded, replicated = played(2, tmp_path, __name__, *scenes)
    for ranks in (sharded, replicated):
        assert [own["ids"] for own in ranks] == [[alone, []], [[], alone]]
        # DDP broadcasts the buffers of rotary embeddings, so that its forwards wait for each other too.
        assert ranks[0]["forwards"] == ranks[1]["forwards"] and min(ranks[0]["forwards"]) > 2


def test_an_error_leaves_at_once(monkeypatch):
    def waits_for_ever(tensor):
        raise AssertionError("nobody else comes")

    monkeypatch.setattr(dist, "all_reduce", waits_for_ever)
    pipe = pipeline(Together())
    with pytest.raises(ValueError, match="a reward"), lockstep(pipe.model, pipe.policy, "cpu"):
        raise ValueError("a reward")


@pytest.mark.smoke
def test_one_process_meets_nobody():
    assert not forwards_meet(tiny_model())


def test_the_smallest_canvas_is_read():
    model = tiny_model()
    inputs = one_token(pipeline(model).policy, "cpu")
    assert inputs["input_ids"].shape == (1, 1)
    assert bool(model(**inputs).logits.isfinite().all())

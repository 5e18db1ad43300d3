"""The auxiliary denoising loss: its formula, what it does to a model, and where its rows come from."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.runs.check import check_recipe
from unigrpo.runs.recipe import parse_recipe
from unigrpo.training.demonstrations import answer_ids, demonstration_loss, demonstrations, written

from ..support.images import options


ROWS = [{"prompt": "w1 w2", "completion": "w5 w6 w7"}, {"prompt": "w3", "completion": "w9 w8"}]


def equal_rewards(completions, **_):
    return [1.0] * len(completions)


def parts(trainer) -> tuple:
    """What an answer is written with."""
    pipe = trainer.pipeline()
    return pipe.policy, pipe.args, pipe.codec


def given_logps(trainer, row) -> float:
    """Summed log-probability of the given answer with all of it hidden."""
    rollout = written(*parts(trainer), row)
    canvas, counts = rollout.canvas, rollout.completion_mask
    with torch.no_grad():
        return float(score_tokens(trainer.model, trainer.policy, canvas, counts, counts).logps.sum())


def test_the_answer_ends_with_a_stop_token_and_a_padded_tail(make_trainer):
    trainer = make_trainer(sft_rows=ROWS, sft_weight=1.0)
    rollout = written(*parts(trainer), ROWS[1])
    places = rollout.canvas.fill_mask[0]
    stop, pad = trainer.policy.stop_token_ids[-1], trainer.policy.pad_token_id
    assert rollout.canvas.ids[0, places].tolist() == [9, 8, stop, *[pad] * 9]
    assert rollout.completion_mask[0, places].tolist() == [True] * 3 + [False] * 9
    full = written(*parts(trainer), {"prompt": "w1", "completion": " ".join(["w5"] * 12)}).canvas
    assert full.ids[0, full.fill_mask[0]].tolist() == [5] * 12, "where the canvas is full, no stop token is needed"


@pytest.mark.smoke
def test_loss_is_lladas_formula(make_trainer):
    """-(1/n) (n/l) sum of the hidden tokens' log-probs = -(1/l) sum, averaged over the step's rows, times the weight."""
    trainer = make_trainer(sft_rows=ROWS, sft_weight=3.0, sft_batch_size=5)
    pipe = trainer.pipeline()
    rows, units = demonstrations(pipe, trainer.sft_dataset, 7)
    total = sum(demonstration_loss(pipe, trainer.model, rows, unit)[0] for unit in units)
    expected = 0.0
    for row in rows:
        hidden = row.hidden[:, 0]
        masked, length = int(hidden.sum()), int(row.completion_mask.sum())
        assert 1 <= masked <= length and bool((hidden[0] <= row.completion_mask).all())
        canvas = pipe.policy.encode([{"prompt": "w1"}], max_completion_length=12)
        canvas = type(canvas)(
            ids=row.ids[None],
            fill_mask=row.fill_mask[None],
            attention_mask=row.attention_mask[None],
            task="text",
            token_space=row.token_space,
        )
        logps = score_tokens(trainer.model, pipe.policy, canvas, hidden, hidden).logps
        expected -= float(logps.detach().sum()) / masked
    accumulation = trainer.args.gradient_accumulation_steps
    assert float(total.detach()) == pytest.approx(3.0 * expected / (5 * accumulation), rel=1e-5)


def test_without_a_preference_only_the_given_answers_pull(make_trainer):
    """Groups of equal rewards and no KL: nothing moves without the term, the given answers become likely with it."""
    still = make_trainer(rewards=equal_rewards, beta=0.0)
    before = [parameter.clone() for parameter in still.model.parameters()]
    still.train()
    assert all(torch.equal(own, other) for own, other in zip(still.model.parameters(), before, strict=True))
    pulled = make_trainer(rewards=equal_rewards, beta=0.0, sft_rows=ROWS, sft_weight=1.0, max_steps=8)
    start = [given_logps(pulled, row) for row in ROWS]
    pulled.train()
    gained = [given_logps(pulled, row) - own for row, own in zip(ROWS, start, strict=True)]
    assert min(gained) > 2.0
    losses = [log["sft_loss"] for log in pulled.state.log_history if "sft_loss" in log]
    assert len(losses) == 8 and losses[-1] < losses[0]


def test_rows_depend_on_the_micro_step_alone_and_a_resume_repeats_them(make_trainer):
    settings = {"sft_rows": ROWS, "sft_weight": 0.5}
    whole = make_trainer(**settings, output_dir="unused")
    whole.args.output_dir = make_trainer(**settings).args.output_dir + "-whole"
    whole.train()
    first = make_trainer(**settings, save_strategy="steps", save_steps=3)
    first.train()
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-3")
    for own, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_pictures_are_given_answers_too(make_trainer):
    settings = options("mixed", 6)
    rows = settings["rows"]
    pictures = [{**row, "task": "t2i"} for row in rows if row.get("image") is not None]
    text = [{**row, "completion": "w5 w6"} for row in rows if row.get("image") is None and row.get("task") != "t2i"]
    trainer = make_trainer(**settings, sft_rows=[pictures[0], text[0]], sft_weight=1.0)
    trainer.train()
    rollout = written(*parts(trainer), trainer.sft_dataset[0])
    space = trainer.policy.token_space("t2i")
    assert bool(rollout.completion_mask.equal(rollout.canvas.fill_mask))
    assert bool(space.contains(rollout.canvas.ids[rollout.completion_mask]).all())
    assert any("sft_loss" in log for log in trainer.state.log_history)


def test_a_given_picture_is_read_as_the_task_says(make_trainer):
    """``images`` with one picture is as good as ``image``, and the task's own transform holds."""
    settings = options("mixed", 6)
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste((255, 0, 0), (0, 0, 32, 32))
    given = [{"prompt": "w1 w2", "task": "t2i", "image": wide}, {"prompt": "w1 w2", "task": "t2i", "images": [wide]}]
    codes = {}
    for transform in ("squash", "crop"):
        overrides = {**settings.get("task_overrides", {})}
        overrides["t2i"] = {**overrides.get("t2i", {}), "image_transform": transform}
        trainer = make_trainer(**{**settings, "task_overrides": overrides}, sft_rows=given, sft_weight=1.0)
        one, other = (answer_ids(trainer.policy, trainer.args, trainer.codec, row) for row in given)
        assert torch.equal(one, other)
        codes[transform] = one
    assert not torch.equal(codes["squash"], codes["crop"])


def test_check_finds_given_answers_that_are_not_there(tmp_path):
    rows = tmp_path / "given.jsonl"
    rows.write_text(json.dumps({"prompt": "Tom has 3 cups and gets 4. Total?", "solution": "7"}) + "\n")
    recipe = {
        "model": {"path": "builtin:arithmetic"},
        "datasets": [{"path": "builtin:arithmetic", "limit": 64}],
        "rewards": [{"name": "think_format"}],
        "sft_datasets": [{"path": str(rows)}],
        "sft_weight": 0.1,
        "output_dir": str(tmp_path),
        "use_cpu": True,
    }
    with pytest.raises(ValueError, match=r"no column 'completion', only .* column_map: \{completion: solution\}"):
        check_recipe(parse_recipe(recipe, "here"))
    recipe["sft_datasets"][0]["column_map"] = {"completion": "solution"}
    assert check_recipe(parse_recipe(recipe, "here"))


@pytest.mark.parametrize(
    ("weight", "rows", "parts"),
    [
        (1.0, None, ["sft_weight=1.0", "sft_dataset"]),
        (0.0, ROWS, ["sft_weight=0.0", "sft_dataset"]),
        (1.0, [{"prompt": "w1"}], ["sft_dataset[0]['completion']=None", "name your column so"]),
        (1.0, [{"prompt": "w1", "completion": " "}], ["sft_dataset[0]['completion']=' '"]),
        (1.0, [{"prompt": "w1", "completion": "w1 " * 13}], ["13 tokens", "max_completion_length=12"]),
        (1.0, [{"prompt": "w1", "completion": "<|mdm_mask|>"}], ["sft_dataset[0]['completion']", "cannot write"]),
        (-1.0, ROWS, ["sft_weight=-1.0"]),
    ],
)
def test_errors_name_row_value_and_cure(make_trainer, weight, rows, parts):
    with pytest.raises(ValueError) as caught:
        make_trainer(sft_rows=rows, sft_weight=weight)
    assert all(part in str(caught.value) for part in parts), str(caught.value)

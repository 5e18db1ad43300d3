"""``unigrpo sft``: from a recipe to weights that reinforcement learning starts from, and what of a recipe is refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
import yaml
from safetensors.torch import load_file

from unigrpo import load_policy
from unigrpo.errors import RecipeError
from unigrpo.runs.cli import main
from unigrpo.runs.recipe import parse_recipe
from unigrpo.runs.sft import build_sft_trainer, parse_sft_recipe, run_sft_recipe
from unigrpo.runs.train import build_trainer, evaluate_recipe
from unigrpo.toy.arithmetic import lessons


ARITHMETIC = {"path": "builtin:arithmetic", "split": "train", "limit": 64}
RECIPE = {
    "model": {"path": "builtin:arithmetic", "dtype": "float32"},
    "datasets": [ARITHMETIC],
    "eval_datasets": [{**ARITHMETIC, "split": "test", "limit": 16}],
    "max_length": 48,
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_steps": 2,
}

SAMPLING = {"max_completion_length": 16, "steps": 16, "block_length": 4}


def recipe(**changes):
    return parse_sft_recipe({**RECIPE, **changes}, "here")


def written(folder, **changes):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(folder / "run"), **changes}))
    return str(path)


def asked_in_chat(row):
    """A row's question and answer as ``messages``."""
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    return {"messages": messages, "solution": row["solution"]}


@pytest.mark.smoke
def test_a_recipe_leaves_weights_that_answer(tmp_path, capsys):
    assert main(["sft", written(tmp_path), "max_steps=2"]) == 0
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    before, after = summary["held_out_before"], summary["held_out_after"]
    assert after["text_nats_per_token"] < before["text_nats_per_token"]
    assert json.loads((folder / "before.json").read_text()) == before
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert {line["run_id"] for line in lines} == {summary["run_id"]}
    assert "held-out text_nats_per_token" in capsys.readouterr().out
    assert isinstance(load_policy(str(folder), device="cpu").generate(["Tom has 127 cups and gets 4. Total?"])[0], str)


def test_the_same_command_goes_on(tmp_path):
    path = written(tmp_path)
    assert main(["sft", path, "max_steps=2"]) == 0
    first = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert main(["sft", path, "resume_from_checkpoint=true"]) == 0
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert again["optimizer_steps"] == 3 and again["run_id"] == first["run_id"]
    assert again["held_out_before"] == first["held_out_before"]
    # Another start is another run, in the next free folder.
    assert main(["sft", path, "max_steps=1"]) == 0
    assert json.loads((tmp_path / "run-2" / "summary.json").read_text())["run_id"] != first["run_id"]


def test_a_run_from_scratch_goes_on_from_its_checkpoint_and_not_from_new_weights(tmp_path):
    """A run that stopped after two steps and went on ends with the weights of one that did not stop."""
    changes = {
        "model": {"path": "builtin:arithmetic", "from_scratch": True},
        "lr_scheduler_type": "constant",
        "eval_datasets": [],
    }
    ended = {}
    for name, starts in (("whole", [[]]), ("resumed", [["max_steps=2"], ["resume_from_checkpoint=true"]])):
        path = written(tmp_path, **changes, output_dir=str(tmp_path / name))
        for start in starts:
            assert main(["sft", path, "seed=4", *start]) == 0
        ended[name] = load_file(tmp_path / name / "model.safetensors")
    fresh = load_policy("builtin:arithmetic", from_scratch=True, seed=4, device="cpu").model.state_dict()
    for key, value in ended["whole"].items():
        assert torch.equal(value, ended["resumed"][key]), key
        assert (value - fresh[key]).abs().max() < 1e-3, key
    rewards = [{"name": "think_format"}]
    config = {
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "seed": 4,
        "output_dir": str(tmp_path / "rl"),
    }
    rl = parse_recipe({**changes, "datasets": [ARITHMETIC], "rewards": rewards, **config, **SAMPLING}, "rl")
    start = build_trainer(rl).model.state_dict()
    assert all(torch.equal(value, start[key]) for key, value in fresh.items())


def test_held_out_answers_are_judged_as_evaluate_judges_them(tmp_path, capsys):
    chats = tmp_path / "chats.jsonl"  # The same questions, half of them asked in a chat.
    rows = [asked_in_chat(row) if number % 2 else row for number, row in enumerate(lessons("test", 24))]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = written(tmp_path, sampling=SAMPLING, eval_datasets=[{"path": str(chats)}])
    assert main(["sft", path, "max_steps=1", "learning_rate=1e-9"]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rl = {"model": {"path": "builtin:arithmetic"}, "datasets": [ARITHMETIC], "rewards": [{"name": "think_format"}]}
    rl |= {"eval_datasets": [{**ARITHMETIC, "split": "test", "limit": 24}], "output_dir": str(tmp_path), **SAMPLING}
    measured = evaluate_recipe(parse_recipe({**rl, "use_cpu": True}, "rl"))
    assert measured.accuracy is not None and 0.1 < measured.accuracy.mean < 0.9
    assert summary["held_out_accuracy_before"] == summary["held_out_accuracy_after"] == asdict(measured.accuracy)
    assert summary["gain_points"] == 0 and f"held-out accuracy: {measured.accuracy} -> {measured.accuracy}" in shown
    assert "accuracy" not in summary["held_out_before"]
    judged = written(tmp_path, sampling=SAMPLING, accuracy="tests.support.controls:never")
    assert main(["sft", judged, "max_steps=1"]) == 0
    assert json.loads((tmp_path / "run-2" / "summary.json").read_text())["held_out_accuracy_after"]["mean"] == 0


def test_datasets_are_sources_with_their_weights_and_adapters_are_named_by_the_recipe(tmp_path):
    own = recipe(
        datasets=[{**ARITHMETIC, "weight": 3}, {**ARITHMETIC, "weight": 1}], lora={"r": 2}, output_dir=str(tmp_path)
    )
    trainer = build_sft_trainer(own)
    assert trainer.args.sampling_weights == {"datasets[0]": 3, "datasets[1]": 1}
    sources = [source for number in range(4) for source, _ in trainer._mixture.step(number)]
    assert sources.count("datasets[0]") == 24 and sources.count("datasets[1]") == 8
    assert trainer.model.peft_config["default"].base_model_name_or_path == "builtin:arithmetic"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": []}, "'datasets' is missing"),
        ({"objectiv": "llada"}, "unknown key 'objectiv'; did you mean 'objective'"),
        ({"objectiv": "llada", "max_lenght": 9}, "unknown key 'objectiv'; did you mean 'objective'"),
        ({"num_generations": 4}, "unknown key 'num_generations'; recipes for `unigrpo train` have it"),
        ({"max_seq_length": 64}, "unknown key 'max_seq_length'; did you mean 'max_length'"),
        ({"datasets": [{**ARITHMETIC, "weight": 1}, ARITHMETIC]}, r"datasets have weights \[1, None\]"),
        ({"datasets": [{**ARITHMETIC, "weight": "much"}]}, r"datasets\[0\].weight"),
        ({"lora": 3}, "lora must be a mapping"),
        ({"sampling": 3}, "sampling must be a mapping"),
        ({"sampling": {"beta": 0}}, "sampling: unknown key 'beta'"),
        ({"sampling": {"steps": 0}}, "here: sampling: steps=0"),
        ({"sampling": {}, "eval_datasets": []}, "sampling asks for held-out answers, and no row of eval_datasets has a question"),
        ({"model": {"path": "builtin:arithmetic", "from_scratch": True}, "lora": {"r": 2}}, "from_scratch=True with an adapter"),
        ({"model": {"path": "builtin:arithmetic", "from_scratch": 1}}, "model.from_scratch=1 must be of type bool"),
        ({"objective": "mmada_stage9"}, "here: objective='mmada_stage9' is not valid"),
        ({"objective": "nowhere.at:all"}, "here: objective='nowhere.at:all' cannot be imported"),
        ({"datasets": [{"path": "builtin:algebra"}]}, "'builtin:algebra' is unknown: shipped sets are"),
        ({"datasets": [{**ARITHMETIC, "name": "stern"}]}, "name='stern': choose one of \\[None, 'careless'\\]"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_named(tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        run_sft_recipe(recipe(output_dir=str(tmp_path), **changes))

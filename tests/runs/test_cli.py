"""The command line as a user types it, on a policy small enough to train in seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
import torch
import transformers
import yaml
from PIL import Image

from unigrpo import load_policy
from unigrpo.runs.cli import main
from unigrpo.runs.recipe import load_recipe
from unigrpo.runs.sft import load_sft_recipe

from ..support.recipes import (
    EVERY,
    RECIPES,
    ROOT,
    SFT_RECIPES,
    SMALL,
    replaced_data,
    replaced_models,
    replaced_sizes,
    write_given_answers,
    write_gsm8k,
)
from ..support.tiny import tiny_model
from ..support.tiny_decoders import tiny_gemma
from ..support.tolerances import assert_rounding


@pytest.fixture
def tiny_recipe(tiny_path, tmp_path) -> Path:
    write_gsm8k(tmp_path / "rows.jsonl", 8)
    file = tmp_path / "recipe.yaml"
    columns = "column_map: {prompt: question, solution: answer}"
    file.write_text(
        f"model: {{path: {tiny_path}}}\n"
        f"datasets: [{{path: {tmp_path / 'rows.jsonl'}, {columns}}}]\n"
        f"eval_datasets: [{{path: {tmp_path / 'rows.jsonl'}, {columns}, limit: 4}}]\n"
        "rewards: [{name: math_correctness, weight: 2.0, task: text}, {name: think_format, weight: 0.5}]\n"
        f"learning_rate: 1.0e-3\noutput_dir: {tmp_path / 'out'}\n"
    )
    return file


@pytest.mark.smoke
def test_train_evaluate_merge_and_sample(tiny_recipe, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", str(tiny_recipe), *SMALL, "lora.r=4", "model.think_prompt='w1 w2 w3'"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["optimizer_steps"] == 2 and summary["lora"] is True and summary["seed"] == 42
    assert {"mean", "low", "high", "count"} == summary["held_out_accuracy_before"].keys()
    assert summary["held_out_accuracy_after"]["count"] == 4
    assert {"torch", "transformers", "unigrpo"} <= summary["versions"].keys()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert (out / "reward_curve.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("held-out accuracy") >= 2
    assert main(["evaluate", str(tiny_recipe), "--model", str(out), *SMALL]) == 0
    assert f"% on {4}" in capsys.readouterr().out.replace("] on", "% on")
    assert main(["merge", str(out), str(tmp_path / "merged")]) == 0
    adapted, merged = load_policy(str(out)), load_policy(str(tmp_path / "merged"))
    assert adapted.policy.processor.think_prompt == "w1 w2 w3"
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert_rounding(merged.model(ids).logits, adapted.model(ids).logits, relative=1e-4)
    names = set(tiny_model().state_dict())
    assert set(merged.model.state_dict()) == names
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "merged"), "w3 w4", "--max-completion-length", "6", "--num", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("> w3 w4") == 2


def test_check_finds_mistakes_and_unreachable_ids(tiny_recipe, capsys):
    assert main(["check", str(tiny_recipe), "use_cpu=true"]) == 0
    assert "gold answers of 8 rows score 1.0" in capsys.readouterr().out
    assert main(["check", str(tiny_recipe), "datasets.0.column_map.solution=question"]) == 1
    assert "unknown" not in capsys.readouterr().out
    assert main(["check", str(tiny_recipe), "rewards.0.name=math_corectness"]) == 1
    assert "math_correctness" in capsys.readouterr().out
    unreachable = ["check", str(tiny_recipe), "model.path=nobody/no-such-model"]
    assert main(unreachable) == 1
    assert "not reachable" in capsys.readouterr().out
    assert main([*unreachable, "--offline"]) == 0
    assert "model nobody/no-such-model: not reachable, not checked" in capsys.readouterr().out
    assert main(["check", str(tiny_recipe), "model.path=./no-such-folder", "--offline"]) == 1
    assert "does not exist" in capsys.readouterr().out
    quickstart = str(ROOT / "recipes" / "quickstart.yaml")
    assert main(["check", quickstart, "datasets.0.split=validation", "--offline"]) == 1
    assert "split='validation': choose one of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sampler=emrge", "emrge"),
        ("image_tokenizer=./no-such-folder", "image_tokenizer './no-such-folder' does not exist"),
        ("rewards=[{name: clip_score, args: {modl: x}}]", "args of 'clip_score': "),
        ("rewards=[{name: clip_score, args: {model: 'builtin:none'}}]", "'builtin:none' is unknown"),
        ("max_prompt_length=1", "tokens is longer than the 1 that fit"),
        ("sampler=block", "task 'text': sampler='block' writes models whose attention is block-causal"),
        ("noise_per=block", "noise_per='block': the attention of MMaDAPolicy is not in blocks"),
        ("policy=sdar", "this is a mmada checkpoint, opened as sdar: set policy to one of its own family"),
    ],
)
def test_check_finds_what_a_run_would_stumble_over(tiny_recipe, change, message, capsys):
    assert main(["check", str(tiny_recipe), "use_cpu=true", change]) == 1
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("own", [{"task": "t2i"}, {"image": "picture.png"}])
def test_check_takes_the_task_that_rows_have_themselves(own, tmp_path, capfd):
    """No dataset names a task here. The image tokenizer is that of the model, and nothing is said to a terminal that is not there."""
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "What shape is it?", **own}) + "\n")
    recipe = {"model": {"path": "builtin:shapes"}, "datasets": [{"path": "rows.jsonl"}], "use_cpu": True}
    recipe |= {"rewards": [{"name": "jpeg_size"}], "output_dir": str(tmp_path / "run")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    datasets.enable_progress_bars()
    assert main(["check", str(tmp_path / "mine.yaml")]) == 0
    shown = capfd.readouterr()
    assert "image tokenizer builtin:shapes_tokenizer: 512 codes" in shown.out and not shown.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "no.yaml"], "recipe 'no.yaml' is not a file"),
        (["sample", "builtin:nothing", "hi"], "shipped checkpoints are"),
        (["merge", "builtin:arithmetic", "x"], "holds no adapter"),
        (["check", "a=b"], "no recipe among"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("unigrpo: error: ") and message in error


@pytest.mark.slow  # `.ci/run` asks the installed command the same.
def test_shipped_recipes_are_clean(tmp_path, monkeypatch, capsys):
    write_given_answers(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    # Their many thousand rows are all written by the check, which takes half a minute each.
    long = [file for file in EVERY if file.stem in ("quickstart_think_draw_sft", "quickstart_emoji_think_sft")]
    assert main(["check", "--offline", *(str(file) for file in EVERY if file not in long)]) == 0
    assert main(["check", "--offline", *map(str, long), "datasets.0.limit=100"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(": ok") == len(EVERY) == len(RECIPES) + len(SFT_RECIPES) and len(SFT_RECIPES) >= 2


@pytest.mark.parametrize("file", SFT_RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_of_given_answers_run_two_steps(file, tiny_models, tmp_path, monkeypatch, capsys):
    """With only model, data and sizes replaced; every task is trained and measured."""
    write_given_answers(tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    shipped, out = load_sft_recipe(str(file)), tmp_path / "out"
    length = min(120, shipped.config["max_length"])
    small = f"""per_device_train_batch_size=4 per_device_eval_batch_size=2 gradient_accumulation_steps=1 max_steps=2 logging_steps=1
        max_length={length} image_size=32 save_strategy=no use_cpu=true disable_tqdm=true model.dtype=float32 num_eval_draws=1""".split()
    sections = {"datasets": shipped.datasets, "eval_datasets": shipped.eval_datasets}
    small += [f"{name}.{number}.limit=2" for name, own in sections.items() for number in range(len(own))]
    small += [f"output_dir={out}"]
    if not shipped.model.path.startswith("builtin:"):
        small += replaced_models(shipped, tiny_models)
    small += ["lora.r=4"] if shipped.lora else []
    assert main(["sft", str(file), *small]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["optimizer_steps"] == 2 and summary["lora"] == bool(shipped.lora)
    said = {name for name in summary["held_out_after"] if name.endswith("nats_per_token")}
    assert said and summary["held_out_after"].keys() == summary["held_out_before"].keys()
    assert "held-out" in capsys.readouterr().out


OF_ANOTHER_CARD = re.compile(r"_(24gb|48gb)$")
"""Recipes that differ from their neighbour in what a card holds: run where there is time."""


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem, marks=pytest.mark.slow if OF_ANOTHER_CARD.search(file.stem) else [])
        for file in RECIPES
    ],
)
def test_shipped_recipes_run_two_steps(file, tiny_models, tmp_path):
    """With only model, data and sizes replaced; every dataset has its prompt in the window."""
    shipped, out = load_recipe(str(file)), tmp_path / "out"
    tasks = {spec.task for spec in shipped.datasets}
    prompts_a_window = max(2, len(shipped.datasets))
    side = 48 if "emoji" in file.stem else 32  # The checker of emoji reads no other size.
    small = [*SMALL, f"image_size={side}", f"per_device_train_batch_size={4 * prompts_a_window}", f"output_dir={out}"]
    limits = {"datasets": prompts_a_window // len(shipped.datasets), "eval_datasets": 2}
    data, models = replaced_data(shipped, tmp_path, limits), replaced_models(shipped, tiny_models)
    lora = ["lora.r=4"] if shipped.lora else []
    assert main(["train", str(file), *small, *replaced_sizes(shipped), *data, *models, *lora]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["optimizer_steps"] == 2 and summary["lora"] == bool(shipped.lora)
    assert summary["held_out_rewards_after"].keys() == summary["held_out_rewards_before"].keys() >= {"reward"}
    measured = [spec.task for spec in shipped.eval_datasets if spec.task in shipped.accuracy and spec.prompt is None]
    assert ("held_out_accuracy_after" in summary) == bool(measured)
    if measured:
        assert summary["held_out_accuracy_after"]["count"] == 2 * len(measured)
    if len(set(measured)) > 1:
        assert {task: own["after"]["count"] for task, own in summary["tasks"].items()} == dict.fromkeys(measured, 2)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    if len(tasks) > 1:
        assert {name for line in lines for name in line if name.startswith("reward/")} == {
            f"reward/{t}" for t in tasks
        }
    sheets = ("images_before.png", "images_after.png", "images.png")
    assert all((out / name).exists() == bool({"t2i", "r2i", "i2i"} & tasks) for name in sheets)


def test_sample_takes_shortcuts(tmp_path, capsys):
    """A sure policy gives the same answer with them, and a shortcut that does not exist for pictures is refused."""
    question = "Tom has 127 cups and gets 4. Total?"
    assert main(["sample", "builtin:arithmetic_trained", question]) == 0
    exact = capsys.readouterr().out
    assert "131" in exact
    shortcuts = ["--kv-cache", "dual", "--confidence-threshold", "0.9", "--exit-entropy", "0.01"]
    assert main(["sample", "builtin:arithmetic_trained", question, *shortcuts]) == 0
    assert capsys.readouterr().out == exact
    assert main(["sample", "builtin:arithmetic_trained", question, "--confidence-threshold", "2"]) == 2
    assert "confidence_threshold=2.0 must lie in (0, 1)" in capsys.readouterr().err
    assert main(["sample", "builtin:shapes", "a large red circle", "--task", "t2i", "--kv-cache", "dual"]) == 2
    assert "sampler 'maskgit' has no option 'kv_cache'" in capsys.readouterr().err
    assert main(["sample", "builtin:arithmetic_trained", question, "--sampler", "left_to_right"]) == 0
    assert "</think>" in capsys.readouterr().out
    options = ["--max-completion-length", "4", "--dtype", "float32"]
    model, policy = tiny_gemma()
    model.save_pretrained(tmp_path)
    policy.processor.save_pretrained(tmp_path)
    for sampler in ([], ["--sampler", "entropy_bound"]):
        assert main(["sample", str(tmp_path), "w3", *sampler, *options]) == 0
    assert main(["sample", "builtin:arithmetic_trained", question, "--kv-cache", "exact"]) == 2
    assert "kv_cache='exact' is for block-causal attention" in capsys.readouterr().err
    both = ["--sampler", "left_to_right", "--kv-cache", "dual"]
    assert main(["sample", "builtin:arithmetic_trained", question, *both]) == 2
    assert "sampler 'left_to_right' has no option 'kv_cache'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "builtin:arithmetic_trained", "w", "--max-completion-length", "4", "--block-length", "4"],
        ["evaluate", "quickstart", "eval_datasets.0.limit=2", "steps=4"],
    ],
    ids=lambda words: words[0],
)
def test_where_nobody_watches_no_bar_is_drawn(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    transformers.utils.logging.enable_progress_bar()
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "\r" not in shown.err + shown.out and "it/s]" not in shown.err

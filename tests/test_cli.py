"""The command line as a user types it, on a policy small enough to train in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unigrpo import load_policy
from unigrpo.cli import main

from .tiny import prompts, tiny_model, tiny_processor


RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

SMALL = [
    "model.dtype=float32",
    "per_device_train_batch_size=8",
    "gradient_accumulation_steps=1",
    "num_generations=4",
    "max_completion_length=12",
    "steps=4",
    "block_length=6",
    "max_steps=2",
    "logging_steps=1",
    "save_strategy=no",
    "use_cpu=true",
    "disable_tqdm=true",
]


def write_gsm8k(path: Path, rows: int) -> None:
    """Rows in the exact schema of openai/gsm8k: question, answer with the worked solution and '#### integer'."""
    records = [
        {"question": row["prompt"], "answer": f"w1 <<1+{i}={i + 1}>> w2\n#### {1000 + i:,}"}
        for i, row in enumerate(prompts(rows))
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


FIXTURES = {"openai/gsm8k": write_gsm8k}


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


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
    assert main(["train", str(tiny_recipe), *SMALL, "lora.r=4"]) == 0
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
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged.model(ids).logits, adapted.model(ids).logits, atol=1e-4, rtol=0)
    names = set(tiny_model().state_dict())
    assert set(merged.model.state_dict()) == names
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "merged"), "w3 w4", "--max-completion-length", "6", "--num", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("> w3 w4") == 2


def test_a_run_resumes_from_the_command_line(tiny_recipe, tmp_path):
    out = tmp_path / "out"
    saving = [*SMALL, "save_strategy=steps", "save_steps=1", "max_steps=3"]
    assert main(["train", str(tiny_recipe), *saving]) == 0
    first = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    before = json.loads((out / "summary.json").read_text())["held_out_accuracy_before"]
    resume = f"resume_from_checkpoint={out / 'checkpoint-1'}"
    assert main(["train", str(tiny_recipe), *saving, resume]) == 0
    again = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [[(line["step"], line["loss"]) for line in lines if "loss" in line] for lines in (first, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert json.loads((out / "summary.json").read_text())["held_out_accuracy_before"] == before


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
    assert main(["check", str(RECIPES[-1]), "datasets.0.split=validation", "--offline"]) == 1
    assert "split='validation': choose one of" in capsys.readouterr().out


def test_an_adapter_folder_keeps_the_think_prompt_it_was_trained_with(tiny_recipe, tmp_path):
    prompt = "w1 w2 w3\n"
    assert main(["train", str(tiny_recipe), *SMALL, "lora.r=4", f"model.think_prompt='{prompt.strip()}'"]) == 0
    assert load_policy(str(tmp_path / "out")).policy.processor.think_prompt == prompt.strip()


def test_gold_answers_that_do_not_score_are_found(tiny_recipe, tmp_path, capsys):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(json.dumps({"question": "w1", "answer": "no number at all"}) + "\n")
    assert main(["check", str(tiny_recipe), f"datasets.0.path={wrong}"]) == 1
    assert "scores no gold answer" in capsys.readouterr().out


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


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for command in ("train", "check", "sample", "evaluate", "merge", "unigrpo train recipes/quickstart.yaml"):
        assert command in shown


def test_shipped_recipes_are_clean(capsys):
    assert main(["check", "--offline", *map(str, RECIPES)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(": ok") == len(RECIPES) >= 2


@pytest.mark.smoke
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_run_two_steps(file, tiny_path, tmp_path):
    from unigrpo.recipe import load_recipe

    shipped = load_recipe(str(file))
    changes = [*SMALL, f"model.path={tiny_path}", f"output_dir={tmp_path / 'out'}"]
    for section, specs in (("datasets", shipped.datasets), ("eval_datasets", shipped.eval_datasets)):
        for index, spec in enumerate(specs):
            changes.append(f"{section}.{index}.limit=4")
            if spec.path in FIXTURES:
                fixture = tmp_path / f"{section}-{index}.jsonl"
                FIXTURES[spec.path](fixture, 4)
                changes.append(f"{section}.{index}.path={fixture}")
    if shipped.lora:
        changes.append("lora.r=4")
    assert main(["train", str(file), *changes]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["optimizer_steps"] == 2 and summary["lora"] == bool(shipped.lora)
    assert summary["held_out_accuracy_after"]["count"] == 4

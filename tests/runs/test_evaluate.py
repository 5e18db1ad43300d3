"""``unigrpo evaluate --tasks``: numbers that depend on the policy, the rows and the seed alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from unigrpo.rollout.generate import load_policy
from unigrpo.runs.cli import main
from unigrpo.runs.evaluate import command
from unigrpo.runs.evaluate.command import evaluate_tasks
from unigrpo.runs.evaluate.folder import ANSWERS, RESULTS, default_name, read_answers
from unigrpo.runs.evaluate.pictures import diversity
from unigrpo.runs.evaluate.policy import open_source

from ..support.processes import played


WARM = ["temperature=0.8", "seed=3"]


def measured(folder, word="builtin:arithmetic", tasks=("arithmetic",), *words, **options):
    """``results.json`` and the lines of ``answers.jsonl``."""
    results = evaluate_tasks(word, tasks, words, output_dir=str(folder), **{"limit": 4, **options})
    assert results == json.loads((folder / RESULTS).read_text())
    return results, (folder / ANSWERS).read_text().splitlines()


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    """Four sums with three samples each, one after the other."""
    folder = tmp_path_factory.mktemp("evaluation") / "once"
    measured(folder, "builtin:arithmetic", ("arithmetic",), *WARM, "per_device_eval_batch_size=1", num_samples=3)
    return folder


def lines_of(folder) -> list[str]:
    return (folder / ANSWERS).read_text().splitlines()


def numbers_of(folder) -> dict:
    return {key: value for key, value in json.loads((folder / RESULTS).read_text()).items() if key != "seconds"}


def test_the_batch_size_changes_no_answer(once, tmp_path):
    _, lines = measured(
        tmp_path, "builtin:arithmetic", ("arithmetic",), *WARM, "per_device_eval_batch_size=5", num_samples=3
    )
    assert lines == lines_of(once) and len(lines) == 12
    assert len({json.loads(line)["completion"] for line in lines}) > 4  # Samples of a prompt differ.


def test_more_samples_and_rows_keep_those_there_were(once, tmp_path):
    _, lines = measured(tmp_path, "builtin:arithmetic", ("arithmetic",), *WARM, num_samples=2, limit=3)
    assert lines == [line for line in lines_of(once) if json.loads(line)["sample"] < 2 and json.loads(line)["row"] < 3]


def test_a_killed_evaluation_goes_on_from_its_answers(once, tmp_path, monkeypatch, capsys):
    asked = []

    def counted(pipe, own, batch, keep):
        asked.extend(batch)
        return answer(pipe, own, batch, keep)

    answer = command.answer
    monkeypatch.setattr(command, "answer", counted)
    folder = tmp_path / "cut"
    shutil.copytree(once, folder)
    kept = lines_of(folder)[:10]
    # A kill cuts the line that is written; other processes' answers lie beside.
    (folder / ANSWERS).write_text("\n".join([*kept[:7], kept[7][:30]]))
    (folder / "answers.part1.jsonl").write_text("\n".join(kept[8:]) + "\n")
    (folder / RESULTS).write_text(json.dumps({**json.loads((folder / RESULTS).read_text()), "finished": False}))
    measured(folder, "builtin:arithmetic", ("arithmetic",), *WARM, num_samples=3)
    assert len(asked) == 12 - 9 and lines_of(folder) == lines_of(once) and numbers_of(folder) == numbers_of(once)
    assert not list(folder.glob("answers.part*"))
    capsys.readouterr()
    measured(folder, "builtin:arithmetic", ("arithmetic",), *WARM, num_samples=3)
    assert len(asked) == 3 and "accuracy" in capsys.readouterr().out  # Finished: shown, not asked again.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 2}, r"holds another evaluation, with tasks.arithmetic.num_samples 3, not 2: set another output_dir"),
        ({"words": ["temperature=0.5", "seed=3"]}, r"settings.text.temperature 0.8, not 0.5"),
        ({"words": ["temperature=0.8", "seed=4"]}, "seed 3, not 4"),
        ({"limit": 3}, "tasks.arithmetic.dataset.rows 4, not 3"),
        ({"word": "builtin:arithmetic_trained"}, "model.path 'builtin:arithmetic', not 'builtin:arithmetic_trained'"),
    ],
)  # fmt: skip
def test_other_settings_do_not_go_into_the_same_folder(options, message, once):
    before = {path: path.read_bytes() for path in once.rglob("*") if path.is_file()}
    given = {"num_samples": 3, "limit": 4, **options}
    word, words = given.pop("word", "builtin:arithmetic"), given.pop("words", WARM)
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(word, ["arithmetic"], words, output_dir=str(once), **given)
    assert {path: path.read_bytes() for path in once.rglob("*") if path.is_file()} == before


def test_numbers_are_those_of_the_answers(once):
    found = json.loads((once / RESULTS).read_text())
    own = found["tasks"]["arithmetic"]
    answers = read_answers(once)
    right = [[one["score"] for one in answers if one["row"] == row] for row in range(4)]
    assert own["mean"] == pytest.approx(sum(map(sum, right)) / 12) and own["count"] == 4 and own["answers"] == 12
    assert own["pass@k"]["3"]["mean"] == pytest.approx(sum(any(one) for one in right) / 4)
    assert own["pass@k"]["1"]["mean"] == pytest.approx(own["mean"]) and own["low"] <= own["mean"] <= own["high"]
    assert {"torch", "transformers", "unigrpo"} <= set(found["versions"])
    assert found["settings"]["text"]["temperature"] == 0.8 and found["settings"]["text"]["block_length"] == 4
    for one in answers:
        gold = int(one["gold"].removeprefix("#### "))
        assert (one["score"] == 1.0) == (one["completion"].rpartition(">")[2].strip() == str(gold))
        assert one["seed"] == 3


def evaluated(rank: int, folder: str) -> str:
    evaluate_tasks("builtin:arithmetic", ["arithmetic"], WARM, output_dir=folder, limit=4, num_samples=3)
    return (Path(folder) / ANSWERS).read_text()


@pytest.mark.processes
def test_two_processes_give_the_same_answers(once, tmp_path):
    folder = tmp_path / "two"
    played(2, tmp_path / "scenes", __name__, ("evaluated", {"folder": str(folder)}))
    assert lines_of(folder) == lines_of(once) and numbers_of(folder) == numbers_of(once)
    assert not list(folder.glob("answers.part*"))


def test_pictures_are_kept_judged_and_compared_with_each_other(tmp_path):
    results, lines = measured(
        tmp_path, "builtin:shapes", ("shapes", "shapes_mmu"), "temperature=1.0", limit=3, num_samples=2
    )
    drawn = [own for own in map(json.loads, lines) if own["task"] == "shapes"]
    assert [own["completion"] for own in drawn][:2] == ["images/shapes/00000_00.png", "images/shapes/00000_01.png"]
    assert all((tmp_path / own["completion"]).is_file() for own in drawn) and {own["score"] for own in drawn} <= {
        0.0,
        1.0,
    }
    assert results["settings"]["pictures"]["image_size"] == 32
    spread = diversity(tmp_path, drawn)
    assert len(spread) == 3 and all(0 < own < 1 for own in spread)
    assert results["tasks"]["shapes"]["diversity"]["mean"] == pytest.approx(sum(spread) / 3)
    assert set(results["tasks"]["shapes_mmu"]["categories"]) <= {"colour", "shape", "caption"}
    (tmp_path / drawn[0]["completion"]).unlink()
    assert len(read_answers(tmp_path)) == len(lines) - 1  # Without its picture an answer is not there.


def test_the_recipes_sampling_is_used_and_the_command_lines_wins(tmp_path):
    own = open_source("quickstart", []).settings(["text"])["text"]
    assert own | {"max_completion_length": 16, "steps": 16, "block_length": 4, "temperature": 0.0} == own
    warm = open_source("quickstart", ["temperature=0.7", "steps=8"]).settings(["text"])["text"]
    assert warm | {"steps": 8, "temperature": 0.7} == warm
    drawn = open_source("builtin:shapes", ["guidance_scale=2", "task_overrides.t2i.steps=4"]).settings(["t2i", "text"])
    assert drawn["t2i"]["steps"] == 4 and drawn["t2i"]["guidance_scale"] == 2.0


def test_an_adapter_is_put_on_the_model_that_it_was_trained_on(once, tmp_path):
    base = load_policy("builtin:arithmetic", device="cpu").model
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))  # It starts as nothing.
    adapted.peft_config["default"].base_model_name_or_path = "builtin:arithmetic"
    adapted.save_pretrained(tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    results, lines = measured(
        tmp_path / "out", "builtin:arithmetic", ("arithmetic",), *WARM, num_samples=1, adapter=adapter
    )
    assert lines == [line for line in lines_of(once) if json.loads(line)["sample"] == 0]
    assert results["model"]["path"] == adapter and results["model"]["weights"] != numbers_of(once)["model"]["weights"]
    with pytest.raises(ValueError, match=r"was trained on .*arithmetic', not on 'builtin:arithmetic_trained'"):
        open_source("builtin:arithmetic_trained", [], adapter=adapter)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["builtin:arithmetic", "--tasks", ","], "--tasks names none: choose some of gsm8k,"),
        (["builtin:arithmetic", "--tasks", "arithmetik"], "did you mean 'arithmetic'"),
        (["builtin:arithmetik", "--tasks", "arithmetic"], "is unknown: shipped checkpoints are"),
        (["quickstrat", "--tasks", "arithmetic"], "did you mean 'quickstart'.*nor is it a model"),
        (["builtin:arithmetic", "--tasks", "arithmetic", "temperatur=1"], "unknown key 'temperatur'; did you mean 'temperature'"),
        (["builtin:arithmetic", "--tasks", "arithmetic", "--num-samples", "2"], "2 samples at temperature 0 are 2 times one answer"),
        (["builtin:arithmetic", "--tasks", "arithmetic", "--data", "gsm8k=rows.jsonl"], "'gsm8k' is none of --tasks arithmetic"),
        (["builtin:arithmetic", "--tasks", "gsm8k", "--data", "gsm8k=rows.jsonl"], "task gsm8k: .*rows.jsonl.* does not exist"),
        (["builtin:arithmetic", "--tasks", "sudoku"], "task sudoku has no rows of its own: give a file, as in --data sudoku"),
        (["builtin:arithmetic", "--tasks", "arithmetic", "--adapter", "builtin:arithmetic"], "is no adapter"),
        (["builtin:arithmetic", "--limit", "3"], "--limit is for benchmarks: add --tasks"),
        (["builtin:arithmetic", "--tasks", "shapes", "--limit", "1"], "builtin:arithmetic cannot draw .task 't2i'.: it names no image tokenizer"),
        (["builtin:shapes", "--export", "geneval=none.jsonl"], "task geneval: 'none.jsonl' is not there: give the evaluation_metadata.jsonl"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said


def test_evaluations_are_called_after_the_model_and_take_the_next_name(tmp_path, monkeypatch, capsys):
    names = {
        "builtin:arithmetic": "arithmetic",
        "runs/math": "math",
        "runs/math/checkpoint-40/": "math-checkpoint-40",
        "Gen-Verse/MMaDA": "MMaDA",
    }
    assert {word: default_name(word) for word in names} == names
    monkeypatch.chdir(tmp_path)
    for seed in ("0", "1", "0"):
        assert main(["evaluate", "builtin:arithmetic", "--tasks", "arithmetic", "--limit", "2", "--seed", seed]) == 0
    assert sorted(path.name for path in (tmp_path / "runs" / "evaluations").iterdir()) == [
        "arithmetic",
        "arithmetic-2",
    ]
    assert capsys.readouterr().out.count("wrote runs/evaluations/arithmetic/results.json") == 2

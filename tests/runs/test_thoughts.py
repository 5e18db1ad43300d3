"""``unigrpo evaluate --thoughts``: each picture is drawn under the thought that its line of the table names."""

from __future__ import annotations

import json

import pytest

from unigrpo.errors import RecipeError
from unigrpo.runs import thoughts
from unigrpo.runs.cli import main
from unigrpo.runs.thoughts import others_of
from unigrpo.toy.riddles import problems


COUNT = 6


def test_each_kind_of_thought_is_what_is_drawn_under(tmp_path, monkeypatch, capsys):
    drawn, roll_out = [], thoughts.roll_out

    def watched(pipe, model, task, rows, keys):
        drawn.append([(row["prompt"], row["thought_ids"].tolist()) for row in rows])
        rollouts = roll_out(pipe, model, task, rows, keys)
        for row, own in zip(rows, rollouts, strict=True):
            assert own.canvas.ids[0, -18 - 13 : -18].tolist() == row["thought_ids"].tolist()
        tokenizer = pipe.policy.processor.tokenizer
        texts.append([tokenizer.decode(row["thought_ids"].tolist(), skip_special_tokens=True) for row in rows])
        return rollouts

    texts: list[list[str]] = []
    monkeypatch.setattr(thoughts, "roll_out", watched)
    words = ["evaluate", "quickstart_think_draw", "--thoughts", f"eval_datasets.0.limit={COUNT}"]
    words += ["task_overrides.picture.steps=2", "per_device_eval_batch_size=8", f"output_dir={tmp_path}"]
    assert main(words) == 0
    rows = problems("test", COUNT)
    others = others_of([row["solution"] for row in rows], "recipe")
    assert texts == [[row["thought"] for row in rows], [""] * COUNT, [rows[other]["thought"] for other in others]]
    assert all([prompt for prompt, _ in own] == [row["prompt"] for row in rows] for own in drawn)
    found = json.loads((tmp_path / "thoughts.json").read_text())
    assert list(found["thoughts"]) == ["own", "given", "empty", "swapped"]
    assert found["thoughts"]["swapped"]["of_thought"]["count"] == found["thoughts_right"]["count"] == COUNT
    assert "another prompt's" in capsys.readouterr().out and (tmp_path / "images_thoughts.png").exists()


@pytest.mark.parametrize("solutions", ["ab", "aab", "abca", "aaab"])
def test_another_thought_belongs_to_another_solution(solutions):
    others = others_of(list(solutions), "recipe")
    assert all(solutions[other] != own for own, other in zip(solutions, others, strict=True))
    with pytest.raises(RecipeError, match="recipe: all 3 held-out rows have one solution"):
        others_of(["a"] * 3, "recipe")


def test_what_has_no_thoughts_is_refused(capsys):
    assert main(["evaluate", "quickstart_image", "--thoughts"]) == 2
    assert "--thoughts needs eval_datasets with rows of task 'r2i' and a 'solution'" in capsys.readouterr().err

"""Benchmarks in the schema that they are published in: what is asked, and which answers are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from unigrpo.errors import RecipeError
from unigrpo.runs.evaluate.rows import Asked, check_golds, read_rows
from unigrpo.runs.evaluate.summaries import summary
from unigrpo.runs.evaluate.task import EvalTask, build_judge, find_task
from unigrpo.runs.evaluate.tasks import TASKS
from unigrpo.toy.shapes import Spec, render
from unigrpo.types import Sample, spans_of


TEXT, WHOLE = Value("string"), Value("int64")


def shape(colour: str, form: str):
    return render(Spec("large", colour, form, "center"), np.random.default_rng(0))


GSM8K = {
    "question": "Natalia sold clips to 48 friends in April, and half as many in May. How many in both?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24.\nTogether 48+24 = <<48+24=72>>72.\n#### 72",
}
MATH = {
    "problem": "Write $0.\\overline{3}+\\frac16$ as a fraction.",
    "solution": "It is $\\frac13+\\frac16=\\boxed{\\frac{1}{2}}$.",
    "answer": "\\frac{1}{2}",
    "subject": "Prealgebra",
    "level": 3,
    "unique_id": "test/prealgebra/1.json",
}
MMLU = {
    "question": "What is the capital of France?",
    "subject": "geography",
    "choices": ["Rome", "Bonn", "Paris", "Oslo"],
    "answer": 2,
}
GEOQA = {
    "image": shape("red", "triangle"),
    "problem": "As in the figure, AB is parallel to CD and angle 1 is 35°. What is angle 2?",
    "solution": "<answer> 145° </answer>",
}
CLEVR = {
    "image": shape("red", "square"),
    "problem": "How many items are there in the image?",
    "solution": "<answer> 3 </answer>",
}
POPE = {
    "id": "0", "question_id": "1", "question": "Is there a circle in the image?", "answer": "yes",
    "image_source": "COCO_val2014_000000310196", "image": shape("red", "circle"), "category": "popular",
}  # fmt: skip
MME = {
    "question_id": "code_reasoning/0020.png", "image": shape("red", "circle"),
    "question": "Is the output of the code 'Hello'? Please answer yes or no.", "answer": "Yes", "category": "code_reasoning",
}  # fmt: skip
COCO = {
    "question_id": "COCO_val2014_000000203564.jpg", "image": shape("red", "circle"),
    "question": "Please carefully observe the image and come up with a caption for the image",
    "answer": ["a red circle", "a large red circle in the middle"], "id": 37, "license": 4, "file_name": "COCO_val2014_000000203564.jpg",
    "coco_url": "http://images.cocodataset.org/val2014/COCO_val2014_000000203564.jpg", "height": 32, "width": 32,
    "date_captured": "2013-11-14 21:11:33",
}  # fmt: skip

SCHEMAS = {
    "gsm8k": ({"question": TEXT, "answer": TEXT}, GSM8K),
    "math500": (dict.fromkeys(("problem", "solution", "answer", "subject"), TEXT) | {"level": WHOLE, "unique_id": TEXT}, MATH),
    "mmlu": ({"question": TEXT, "subject": TEXT, "choices": List(TEXT), "answer": ClassLabel(names=list("ABCD"))}, MMLU),
    "countdown": ({"target": WHOLE, "nums": List(WHOLE)}, {"target": 98, "nums": [44, 19, 35]}),
    "geoqa": ({"image": Image(), "problem": TEXT, "solution": TEXT}, GEOQA),
    "clevr": ({"image": Image(), "problem": TEXT, "solution": TEXT}, CLEVR),
    "pope": ({name: Image() if name == "image" else TEXT for name in POPE}, POPE),
    "mme": ({name: Image() if name == "image" else TEXT for name in MME}, MME),
    "captions": (
        dict.fromkeys(COCO, TEXT)
        | {"image": Image(), "answer": List(TEXT), "id": WHOLE, "license": Value("int8"), "height": Value("int32"), "width": Value("int32")},
        COCO,
    ),
}  # fmt: skip
"""Columns and types as the hub has them, and a row."""

ASKED = {
    "gsm8k": GSM8K["question"] + "\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "mmlu": "What is the capital of France?\nA. Rome\nB. Bonn\nC. Paris\nD. Oslo\nAnswer with the letter of the right option.",
    "countdown": "Using the numbers [44, 19, 35], create an equation that equals 98.",
    "pope": "Is there a circle in the image?\nAnswer the question using a single word or phrase.",
    "mme": MME["question"],
    "geoqa": GEOQA["problem"],
    "captions": "Describe this picture in one or two plain sentences.",
}

GRADED = {
    "gsm8k": {"\\boxed{72}": 1, "<think>24</think>The answer is 72.": 1, "#### 72": 1, "\\boxed{24}": 0, "<think>72": 0, "": 0},
    "math500": {"\\boxed{\\frac12}": 1, "so it is \\boxed{0.5}": 1, "\\boxed{\\frac{2}{3}}": 0, "\\boxed{2}": 0},
    "mmlu": {"C": 1, "(C)": 1, "The answer is C.": 1, "Paris": 1, "B": 0, "C or D": 0, "<think>C</think>A": 0},
    "countdown": {
        "<answer> 44 + 19 + 35 </answer>": 1, "<answer>(35+19)+44 = 98</answer>": 1, "<answer>44+35+20</answer>": 0,
        "<answer>44 + 19 - 35</answer>": 0, "98": 0,
    },
    "geoqa": {"<answer>145°</answer>": 1, "145": 1, "<answer>35°</answer>": 0},
    "clevr": {"<answer>3</answer>": 1, "three": 1, "4": 0},
    "pope": {"Yes": 1, "yes, there is": 1, "No": 0, "yes or no": 0, "a circle": 0},
    "mme": {"Yes": 1, "Yes.": 1, "no": 0, "": 0},
}  # fmt: skip
"""Answers, judged by hand."""


def asked_of(name: str, task: EvalTask, path: str) -> Asked:
    source, rows = read_rows(name, task, path)
    return Asked(name=name, task=task, source=source, rows=rows, judge=build_judge(task, name), num_samples=1)


def published(name: str, folder, task: EvalTask | None = None) -> Asked:
    """A task whose rows are one in the published schema, as Parquet."""
    columns, row = SCHEMAS[name]
    path = str(folder / "rows.parquet")
    Dataset.from_list([row], features=Features(columns)).to_parquet(path)
    return asked_of(name, task or TASKS[name], path)


def scores(asked: Asked, *completions, row: int = 0) -> list[float]:
    own = asked.rows[row]
    images = [shape("red", "circle")] if own.get("image") is not None else None
    samples = [
        Sample(row=own, completion=one, completion_ids=[], task=asked.task.task, images=images) for one in completions
    ]
    return asked.rewards.score(samples).values[:, 0].tolist()


@pytest.mark.parametrize("name", GRADED)
def test_rows_as_published_are_asked_and_graded(name, tmp_path):
    asked = published(name, tmp_path)
    assert asked.rows[0]["prompt"].startswith(ASKED.get(name, ""))
    assert asked.rows[0]["task"] == TASKS[name].task and check_golds(asked) == 0
    assert scores(asked, *GRADED[name]) == list(GRADED[name].values())


def test_sudoku_of_a_table_keeps_its_zeros(tmp_path):
    (tmp_path / "sudoku.csv").write_text("Puzzle,Solution\n0020341002004301,1423341212344321\n")
    asked = asked_of("sudoku", TASKS["sudoku"], str(tmp_path / "sudoku.csv"))
    assert "0020341002004301" in asked.rows[0]["prompt"]
    right, one_wrong = "<answer>1423341212344321</answer>", "<answer>1423341212344322</answer>"
    assert scores(asked, right) == [1.0] and scores(asked, one_wrong) == [1.0]  # The last cell was given.
    assert scores(asked, "<answer>2423341212344321</answer>")[0] == pytest.approx(7 / 8)


@pytest.mark.parametrize("name", ["captions", "t2i"])
def test_pictures_and_captions_are_scored_by_clip(name, tmp_path):
    task = replace(TASKS[name], judge={"name": "clip_score", "model": "builtin:shapes_clip"})
    if name == "captions":
        right, wrong = scores(published(name, tmp_path, task), "a large red circle", "a large blue square")
    else:
        (tmp_path / "prompts.txt").write_text("a large red circle\n")
        asked = asked_of(name, task, str(tmp_path / "prompts.txt"))
        right, wrong = scores(asked, shape("red", "circle"), shape("blue", "square"))
    assert right > wrong + 1


TOYS = {
    "arithmetic": lambda row: (f"<think>1</think>{row['a'] + row['b']}", "<think>1</think>0"),
    "running_sums": lambda row: (row["solution"], row["solution"][1:]),
    "toy_countdown": lambda row: (row["solution"], "1"),
    "toy_sudoku": lambda row: (row["solution"], row["puzzle"]),
    "shapes": lambda row: (shape_of(row), shape("white" if row["colour"] != "white" else "red", row["shape"])),
    "shapes_mmu": lambda row: (row["solution"], "a cube"),
    "riddles": lambda row: (shape_of(row), shape("white" if row["colour"] != "white" else "red", row["shape"])),
}


def shape_of(row):
    return render(Spec(row["size"], row["colour"], row["shape"], row["position"]), np.random.default_rng(0))


@pytest.mark.parametrize("name", TOYS)
def test_shipped_worlds_are_graded(name):
    source, rows = read_rows(name, TASKS[name], limit=3)
    asked = Asked(
        name=name, task=TASKS[name], source=source, rows=rows, judge=build_judge(TASKS[name], name), num_samples=1
    )
    assert len(rows) == 3
    for place in range(3):
        assert scores(asked, *TOYS[name](rows[place]), row=place) == [1.0, 0.0]


def test_every_task_has_a_canvas_and_a_judge():
    for name, task in TASKS.items():
        assert spans_of(task.task) and (build_judge(task, name) is None) == (task.layout is not None)
        assert task.about and (task.path or task.layout or name == "sudoku")


def test_mme_scores_pictures_with_both_questions_right():
    def one(category, picture, sample, score):
        return {
            "category": category,
            "cluster": picture,
            "row": 0,
            "sample": sample,
            "score": score,
            "completion": "yes",
            "gold": "Yes",
        }

    answers = [
        one("count", "a", 0, 1.0), one("count", "a", 0, 1.0),  # 100 + 100
        one("count", "b", 0, 1.0), one("count", "b", 0, 0.0),  # 50 + 0
        one("color", "c", 0, 0.0), one("color", "c", 0, 0.0),
        one("code_reasoning", "d", 0, 1.0), one("code_reasoning", "d", 0, 1.0),
        one("code_reasoning", "e", 0, 1.0),  # Its other question was cut off.
    ]  # fmt: skip
    for row, own in enumerate(answers):
        own["row"] = row
    found = summary(TASKS["mme"], answers)["scores"]
    assert found == {"perception": 125.0, "cognition": 200.0, "code_reasoning": 200.0, "color": 0.0, "count": 125.0}


def test_pope_scores_are_of_yes():
    said = [("yes", "yes"), ("Yes.", "yes"), ("yes", "no"), ("no", "no"), ("a cat", "yes")]
    answers = [
        {
            "row": row,
            "sample": 0,
            "score": float(one.lower().startswith(gold)),
            "completion": one,
            "gold": gold,
            "category": "popular",
        }
        for row, (one, gold) in enumerate(said)
    ]
    found = summary(TASKS["pope"], answers)
    assert found["scores"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_share": 3 / 5})
    assert found["mean"] == pytest.approx(3 / 5) and found["categories"] == {"popular": {"mean": 3 / 5, "count": 5}}


def rows_file(folder, *lines: str) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_rows_of_ones_own_are_taken_as_they_are(tmp_path):
    path = rows_file(tmp_path, '{"prompt": "1 + 1?", "solution": "2"}')
    asked = asked_of("gsm8k", TASKS["gsm8k"], path)
    assert asked.rows[0]["prompt"] == "1 + 1?" and asked.rows.template == "{prompt}" and scores(asked, "2") == [1.0]


def test_a_chat_is_judged_by_its_text(tmp_path):
    path = rows_file(tmp_path, '{"prompt": [{"role": "user", "content": "1 + 1?"}], "solution": "2"}')
    assert scores(asked_of("gsm8k", TASKS["gsm8k"], path), "2", "3") == [1.0, 0.0]


def test_the_fingerprint_is_the_contents(tmp_path):
    prints = []
    for place, colour in (
        ("a", "red"),
        ("b", "red"),
        ("c", "blue"),
    ):  # Pictures by path: where they lie does not matter.
        (tmp_path / place).mkdir()
        shape(colour, "circle").save(tmp_path / place / "0.png")
        path = rows_file(tmp_path / place, '{"prompt": "What?", "image": "0.png", "solution": "a circle"}')
        prints.append(asked_of("clevr", TASKS["clevr"], path).rows.fingerprint())
    assert prints[0] == prints[1] != prints[2]
    once = published("pope", tmp_path).rows.fingerprint()
    assert published("pope", tmp_path).rows.fingerprint() == once
    other = {**POPE, "image": shape("blue", "circle")}
    Dataset.from_list([other], features=Features(SCHEMAS["pope"][0])).to_parquet(str(tmp_path / "other.parquet"))
    assert asked_of("pope", TASKS["pope"], str(tmp_path / "other.parquet")).rows.fingerprint() != once


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "1 + 1?", "result": "2"}', "task gsm8k: .* has no column 'answer', only .*: rename one, or give other rows"),
        ('{"query": "1 + 1?", "answer": "2"}', "has no column 'question'"),
        ('{"prompt": "1 + 1?", "solution": null}', "task gsm8k: the judge can read no solution"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_one_sentence(line, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_golds(asked_of("gsm8k", TASKS["gsm8k"], rows_file(tmp_path, line)))


def test_unknown_tasks_name_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--tasks='gsm8' is not valid: did you mean 'gsm8k'"):
        find_task("gsm8", TASKS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_tasks.py").write_text(
        "from unigrpo.runs.evaluate.task import EvalTask\nsums = EvalTask(about='', path='builtin:arithmetic', judge='math_correctness')\n"
    )
    assert find_task("own_tasks:sums", TASKS).judge == "math_correctness"
    with pytest.raises(ValueError, match="is a type: make it an EvalTask"):
        find_task("own_tasks:EvalTask", TASKS)
    with pytest.raises(RecipeError, match=r"task pope: .* has no column 'image'"):
        read_rows(
            "pope",
            TASKS["pope"],
            rows_file(tmp_path, '{"question": "?", "answer": "yes", "image_source": "", "category": ""}'),
        )

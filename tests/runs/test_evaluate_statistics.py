"""Intervals, pass@k and the majority against counting, and the folders of other benchmarks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from PIL import Image

from unigrpo.runs.evaluate.layouts import LAYOUTS
from unigrpo.runs.evaluate.readings import answered, chosen, written, yes_no
from unigrpo.runs.evaluate.rows import read_rows
from unigrpo.runs.evaluate.statistics import interval, majority, pass_at_k, powers
from unigrpo.runs.evaluate.summaries import summary
from unigrpo.runs.evaluate.tasks import TASKS


@pytest.mark.parametrize(
    ("right", "count", "k"), [(c, n, k) for n in (1, 4, 5) for c in range(n + 1) for k in range(1, n + 1)]
)
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(right, count, k):
    answers = [True] * right + [False] * (count - right)
    draws = list(combinations(answers, k))
    assert pass_at_k(right, count, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased():
    chance, count, k = 0.3, 6, 3
    mean = sum(
        comb(count, c) * chance**c * (1 - chance) ** (count - c) * pass_at_k(c, count, k) for c in range(count + 1)
    )
    assert mean == pytest.approx(1 - (1 - chance) ** k)
    with pytest.raises(ValueError, match="pass@7 of 6 answers"):
        pass_at_k(1, 6, 7)


def test_the_interval_of_two_prompts_is_that_of_all_draws():
    draws = [np.mean(own) for own in product([0.0, 1.0], repeat=2)]
    found = interval([0.0, 1.0])
    assert (found.mean, found.low, found.high, found.count) == (0.5, min(draws), max(draws), 2)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [0] * 200
    for place in range(200):
        found = interval((rng.random(60) < 0.4).astype(float).tolist())
        inside[place] = found.low <= 0.4 <= found.high
    assert 0.90 <= np.mean(inside) <= 0.99


def test_prompts_of_a_cluster_are_drawn_together():
    values = [1.0, 1.0, 0.0, 0.0] * 20
    alone, pairs = interval(values), interval(values, [place // 2 for place in range(80)])
    assert alone.mean == pairs.mean == 0.5 and alone.count == pairs.count == 80
    assert (pairs.high - pairs.low) / (alone.high - alone.low) == pytest.approx(2**0.5, rel=0.1)


def test_where_all_are_right_the_interval_has_a_width():
    found, none = interval([1.0] * 20), interval([0.0] * 20)
    assert (found.low, found.high) == pytest.approx((0.8389, 1.0), abs=1e-4)  # Wilson, 20 of 20.
    assert (none.low, none.high) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert interval([2.5] * 20, binary=False).low == 2.5
    with pytest.raises(ValueError, match="no prompts"):
        interval([])


def test_the_majority_is_the_most_frequent_answer():
    def vote(*texts: str) -> float:
        return majority([float("7" in text) for text in texts], texts, answered)

    assert vote("\\boxed{7}", "the answer is 7.", "\\boxed{8}") == 1.0
    assert vote("\\boxed{8}", "\\boxed{8.}", "<think>7</think>7") == 0.0
    assert vote("<think>7", "<think>7", "7") == 1.0  # A thought that does not end gives no vote.
    assert vote("8", "7") == 0.0 and vote("7", "8") == 1.0 and vote("") == 0.0
    assert (chosen("The answer is (B)."), chosen("A or B"), yes_no("Yes, it is"), yes_no("maybe")) == (
        "B",
        None,
        "yes",
        None,
    )
    assert written("<think>a</think> Red  Circle ") == "red circle" and powers(6) == [1, 2, 4, 6]


def line(row: int, sample: int, score: float | None, completion: str = "7") -> dict:
    return {"task": "arithmetic", "row": row, "sample": sample, "score": score, "completion": completion}


def test_a_prompt_counts_once_however_many_answers_it_has():
    answers = [
        line(0, 0, 1.0),
        line(1, 0, 0.0, "3"),
        line(0, 1, 1.0),
        line(1, 1, 1.0),
        line(0, 2, 1.0),
        line(1, 2, 0.0, "3"),
        line(2, 0, None),
    ]
    found = summary(TASKS["arithmetic"], answers, [0.25, 0.75])
    assert found["mean"] == pytest.approx((1 + 1 / 3) / 2) and (
        found["count"],
        found["answers"],
        found["unjudged"],
    ) == (2, 7, 1)
    assert {k: own["mean"] for k, own in found["pass@k"].items()} == pytest.approx({"1": 2 / 3, "2": 5 / 6, "3": 1.0})
    assert found["majority@k"]["3"]["mean"] == 0.5 and found["diversity"]["mean"] == 0.5
    scored = summary(replace(TASKS["arithmetic"], metric="clip_score"), answers)
    assert "pass@k" not in scored and scored["metric"] == "clip_score"
    assert summary(TASKS["geneval"], [line(0, 0, None)])["metric"] is None


GENEVAL = '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}'
GENEVAL2 = '{"prompt": "two cows", "atom_count": 2, "vqa_list": [["How many cows are in the image?", "two"]], "skills": ["count"]}'
WISE = [
    {"prompt_id": 401, "Prompt": "A plant that needs light", "Explanation": "It bends", "Category": "Biology", "Subcategory": "State"},
]  # fmt: skip
ONEIG = "category,id,prompt_en,type,prompt_length,class\nPortrait,007,a woman who reads,NP,short,None\n"


def prompts_of(name: str, folder) -> str:
    """A benchmark's file of prompts, as it is published."""
    if name == "dpg":
        (folder / "prompts").mkdir()
        (folder / "prompts" / "midjourney12.txt").write_text("a castle at dusk\n")
        return str(folder / "prompts")
    texts = {"geneval": GENEVAL, "geneval2": GENEVAL2, "wise": json.dumps(WISE), "oneig": ONEIG}
    path = (
        folder
        / {
            "geneval": "evaluation_metadata.jsonl",
            "geneval2": "geneval2_data.jsonl",
            "wise": "w.json",
            "oneig": "OneIG-Bench.csv",
        }[name]
    )
    path.write_text(texts[name])
    return str(path)


FILES = {
    "geneval": ["00000/metadata.jsonl", *(f"00000/samples/{number:04d}.png" for number in range(4))],
    "geneval2": ["image_paths.json"],
    "wise": ["401.png"],
    "dpg": ["midjourney12.png"],
    "oneig": ["images/human/mine/007.webp"],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_pictures_lie_where_the_benchmarks_own_code_looks(name, tmp_path):
    _, rows = read_rows(name, TASKS[name], prompts_of(name, tmp_path))
    count = TASKS[name].num_samples
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)][:count]
    paths = [tmp_path / f"{number}.png" for number in range(count)]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (8, 8), colour).save(path)
    LAYOUTS[name].write(tmp_path / "out", rows, {0: paths}, "mine")
    files = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert files == FILES[name] and rows[0]["task"] == "t2i"
    if name == "geneval":
        assert (tmp_path / "out" / files[0]).read_text() == GENEVAL + "\n"
    if name == "geneval2":
        assert json.loads((tmp_path / "out" / files[0]).read_text()) == {"two cows": str(paths[0])}
    if name in ("dpg", "oneig"):
        sheet = Image.open(tmp_path / "out" / files[0]).convert("RGB")
        crops = [(0, 0), (8, 0), (0, 8), (8, 8)]  # As both cut them.
        assert sheet.size == (16, 16) and [sheet.getpixel((x + 4, y + 4)) for x, y in crops] == colours
        with pytest.raises(ValueError, match="reads 1 or 4 pictures a prompt: --num-samples=3"):
            LAYOUTS[name].check(3)


def test_another_file_is_no_file_of_prompts(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"caption": "a bench"}\n')
    with pytest.raises(
        ValueError, match=r"task geneval: .*rows.jsonl' is not the evaluation_metadata.jsonl of GenEval"
    ):
        read_rows("geneval", TASKS["geneval"], str(tmp_path / "rows.jsonl"))

"""Commands about rows that show a picture and want another one: what is left out, what stands on sheets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from unigrpo.runs.agreement.command import measured_rows
from unigrpo.runs.cli import main
from unigrpo.runs.evaluate.task import EvalTask
from unigrpo.runs.plots import picture_sheet
from unigrpo.runs.report import answers as report_answers
from unigrpo.types import Sample

from ..support.images import picture, tiny_tokenizer
from ..support.recipes import recipe
from ..support.tiny_lumina import random_lumina


EDITS = EvalTask(about="edits", path="", task="i2i", split="train", judge="pixel_similarity", metric="similarity")
THOUGHTS = EvalTask(about="edits with a thought", path="", task="r2i", split="train", judge="pixel_similarity")

RECIPE = """
model: {path: MODEL}
image_tokenizer: CODES
datasets: [{path: ROWS, task: i2i}]
eval_datasets: [{path: ROWS, task: i2i}]
rewards: [{name: pixel_similarity, weight: 1.0}]
output_dir: out
use_cpu: true
image_size: 32
steps: 2
"""


@pytest.fixture
def edits(tmp_path):
    """A recipe that edits two pictures as one instruction says; all its files are in ``tmp_path``."""
    model, processor = random_lumina()
    for own, name in ((model, "model"), (processor, "model"), (tiny_tokenizer(), "codes")):
        own.save_pretrained(tmp_path / name)
    rows = []
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
        rows.append({"prompt": "w2 w3", "image": str(tmp_path / f"{number}.png")})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    places = {"MODEL": "model", "CODES": "codes", "ROWS": "rows.jsonl"}
    text = RECIPE
    for word, name in places.items():
        text = text.replace(word, str(tmp_path / name))
    return recipe(tmp_path, text)


def test_agreement_names_edits_that_it_leaves_out(tmp_path, edits):
    for task in ("i2i", "r2i"):
        own = recipe(tmp_path, (tmp_path / "recipe.yaml").read_text(), f"eval_datasets.0.task={task}")
        with pytest.raises(ValueError, match=rf"holds out pictures to draw only \(task '{task}'\)"):
            measured_rows(own, 0)


def test_the_sheet_of_held_out_edits_shows_what_each_was_made_of():
    made = Image.new("RGB", (48, 32), "blue")
    rows = [{"prompt": "w2", "task": "i2i", "image": Image.new("RGB", (48, 32), own)} for own in ("red", "lime")]
    samples = [Sample(row=row, completion=made, completion_ids=[], task="i2i") for row in rows]
    sheet = np.asarray(picture_sheet(samples, "before training"))
    areas = [(sheet == colour).all(axis=2).sum() for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert areas[0] == areas[1] > 0 and areas[2] == 2 * areas[0]


def test_an_evaluation_keeps_the_picture_that_an_edit_was_made_of_and_the_report_shows_it(
    tmp_path, edits, monkeypatch
):
    (task, out), rows = (f"{__name__}:EDITS", tmp_path / "evaluated"), tmp_path / "rows.jsonl"
    argv = ["evaluate", str(tmp_path / "recipe.yaml"), "--tasks", task, "--data", f"{task}={rows}"]
    assert main([*argv, "--num-samples", "2", "--output-dir", str(out)]) == 0
    lines = [json.loads(own) for own in (out / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for own in lines:
        with Image.open(out / own["shown"]) as shown:
            assert shown.tobytes() == picture(own["row"]).convert("RGB").tobytes()
    drawn = []
    monkeypatch.setattr(report_answers, "grouped_sheet", lambda own, **_: drawn.extend(own) or picture(0))
    assert main(["report", str(out)]) == 0
    assert [own.shown.tobytes() for own in drawn] == [picture(line["row"]).tobytes() for line in lines]


def test_a_damaged_picture_is_met_before_a_thought_is_evaluated(tmp_path, edits, capsys):
    (tmp_path / "1.png").write_bytes(b"no picture")
    task = f"{__name__}:THOUGHTS"
    argv = ["evaluate", str(tmp_path / "recipe.yaml"), "--tasks", task, "--data", f"{task}={tmp_path / 'rows.jsonl'}"]
    assert main([*argv, "--output-dir", str(tmp_path / "evaluated")]) == 2
    assert "row 1['image']" in capsys.readouterr().err

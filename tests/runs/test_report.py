"""The page of a folder: what it shows, what it says of missing parts, and that nothing in it is obeyed."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from unigrpo.runs.cli import main
from unigrpo.runs.denoising import denoising
from unigrpo.runs.recipe import load_recipe
from unigrpo.runs.report.curves import Curve, figure, thinned, ticks
from unigrpo.runs.train import held_out_pipeline, held_out_rows
from unigrpo.terminal import visible
from unigrpo.training.evaluation import held_out_answers

from ..support.escapes import TEXTS, obeyed
from ..support.run_folders import evaluation_folder, line, run_folder


VOID = {"meta", "link", "img", "input", "br", "wbr", "circle", "path"}


class Page(HTMLParser):
    """A page taken apart: its text, its elements, and whether they close in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or not {"style", "script", "svg"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path, *words: str) -> Page:
    assert main(["report", str(folder), "--output", str(folder.parent / "page.html"), "--overwrite", *words]) == 0
    return Page((folder.parent / "page.html").read_text(encoding="utf-8"))


@pytest.mark.smoke
def test_a_finished_run_is_shown_with_its_change_its_curves_and_its_worst_answer(tmp_path):
    page = page_of(run_folder(tmp_path / "run"))
    for words in (
        "Finished after 6 optimizer steps in 1 min 01 s of training",
        "50.0 % [40.0, 60.0] → 70.0 % [60.0, 80.0] +20.0 points",
        "Reward 1.1 → 1.6",
        "unigrpo train quickstart seed=1",
        "0 of <think>3</think>7 <think>3</think>7 7",
        "policy <think>3</think>7",
    ):
        assert words in page.text, words
    sliders = [own for tag, own in page.elements if tag == "input"]
    assert [own["max"] for own in sliders] == ["3", "3"]


CASES = {
    "killed": ({"steps": 3, "finished": False}, "Not finished: the last log is of step 3 of 6"),
    "no end": ({"steps": 3, "finished": False}, "no measurement after training"),
    "nothing logged": ({"steps": 0, "finished": False}, "Nothing was logged before the run ended."),
    "empty curves": ({"steps": 0, "finished": False}, "metrics.jsonl holds no line yet"),
    "one step": ({"steps": 1, "total": 1}, "each curve is a dot"),
    "not held out": ({"held_out": False}, "No held-out rows were measured"),
    "not recorded": ({"held_out": False}, "No answer was recorded step by step"),
    "not kept": ({"held_out": False}, "No answers were kept with their rewards"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_is_said_in_a_sentence(name, tmp_path):
    options, words = CASES[name]
    assert words in page_of(run_folder(tmp_path / "run", **options)).text


def test_files_that_are_torn_or_foreign_are_left_out(tmp_path):
    folder = run_folder(tmp_path / "run", finished=False)
    lines = [json.dumps(line(7, reward=None, kl="much", loss=float("nan"))), "[1]", "\x00\x00", '{"step": 8, "rew']
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines))
    for name in ("before.json", "denoising_before.json", "unigrpo_run.json", "after.json"):
        (folder / name).write_text('{"accuracy": ')
    (folder / "summary.json").write_text('{"run_id": "another", "held_out_accuracy_after": 3, "tasks": 1}')
    (folder / "images.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (folder / "completions").mkdir()
    (folder / "completions" / "completions_00001.parquet").write_bytes(b"PAR1")
    page = page_of(folder)
    assert "Reward 1.1 → 1.6" in page.text
    assert "nothing is known of the start" in page.text


@pytest.mark.parametrize("kind", ["run", "evaluation"])
@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "</style>&lt;", *TEXTS.values()]
)
def test_what_a_model_wrote_is_text(kind, text, tmp_path):
    folder = tmp_path / "folder"
    if kind == "run":
        run_folder(folder, text=text, name=text, finished=True)
    else:
        evaluation_folder(folder, text)
    page = page_of(folder)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == tags.count("style") == 1
    assert not [name for _, own in page.elements for name in own if name.startswith("on")]
    links = [own[name] for _, own in page.elements for name in ("src", "href", "action", "srcset") if name in own]
    assert all(str(link).startswith("data:") for link in links)
    shown = "".join(page.words) + "".join(str(value) for _, own in page.elements for value in own.values())
    assert not obeyed(shown.replace("\n", ""))
    assert shown.count(visible(text)) >= 3


def test_logged_rollouts_are_searched_for_the_worst_where_nothing_was_held_out(tmp_path):
    from unigrpo.training.completions import save_completions

    folder = run_folder(tmp_path / "run", held_out=False, finished=False)
    table = {"task": ["text"] * 2, "prompt": ["good?", "bad?"], "completion": ["yes", "<b>no"], "math": [1.0, 0.25]}
    save_completions(table, folder / "completions", 5)
    assert "0.5 bad? <b>no – 2 good? yes –" in page_of(folder).text


def test_an_evaluation_is_shown_with_its_tasks_and_its_worst_answers(tmp_path):
    page = page_of(evaluation_folder(tmp_path / "evaluation"))
    assert "sums accuracy 62.5 % [52.5, 72.5] 64 50.0 % [40.0, 60.0] 75.0 % [65.0, 85.0]" in page.text
    assert "draw clip_score 71.5 [70, 73] 1" in page.text
    assert "0.125 no ../secret.png – 0.25 no no no" in page.text
    assert [own["class"] for tag, own in page.elements if tag == "img"] == ["sheet", "small"]
    unfinished = page_of(evaluation_folder(tmp_path / "unfinished", finished=False))
    assert "Not finished: the same `unigrpo evaluate` goes on with it" in unfinished.text


@pytest.mark.parametrize("case", ["exists", "folder", "no folder", "no run", "no weights", "evaluation"])
def test_a_mistake_is_one_sentence_and_nothing_is_overwritten(case, tmp_path, capsys):
    folder = run_folder(tmp_path / "run")
    (folder / "report.html").write_text("mine")
    words, said = {
        "exists": ([str(folder)], "exists already: name another file with --output, or add --overwrite"),
        "folder": ([str(folder), "--output", str(tmp_path)], "is a folder: name a file"),
        "no folder": ([str(tmp_path / "nowhere")], "is not there: give the output_dir of a run"),
        "no run": ([str(tmp_path)], "holds no run and no evaluation"),
        "no weights": ([str(folder), "--overwrite", "--denoise", "1"], "holds no weights"),
        "evaluation": ([str(tmp_path / "evaluation"), "--denoise", "1"], "a folder of evaluation: leave it out"),
    }[case]
    evaluation_folder(tmp_path / "evaluation")
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (folder / "report.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["quickstart", "quickstart_image"])
def test_recorded_steps_are_those_of_the_sampler(name):
    """Tokens in their order are the answer; a picture's codes fill its grid; every step that wrote something is there."""
    recipe = load_recipe(name, ["eval_datasets.0.limit=3"])
    rows = held_out_rows(recipe)
    pipe = held_out_pipeline(recipe, rows)
    samples = held_out_answers(pipe, rows, 1, 3)
    entries = denoising(samples, pipe.policy, 2)
    assert len(entries) == 2
    for entry, sample in zip(entries, samples, strict=False):
        (span,) = entry["spans"]
        own = sample.rollout.step_map[0]
        assert span["steps"] == own[own >= 0].tolist() and entry["prompt"] == sample.row["prompt"]
        if "tokens" in span:
            assert "".join(span["tokens"]).removesuffix("<|eot_id|>") == sample.completion
        else:
            assert len(span["steps"]) == span["columns"] ** 2 and span["picture"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    "low,high", [(0.0, 0.0), (-3.0, -3.0), (1e-9, 3e-9), (-1.0, 1e6), (0.0, 0.003), (99.9, 100.1)]
)
def test_ticks_are_round_and_span_what_is_drawn(low, high):
    found = ticks(low, high, 4)
    assert found[0] <= low + 1e-9 * abs(low) and found[-1] >= high - 1e-9 * abs(high) and 2 <= len(found) <= 8
    assert len(set(found)) == len(found)
    for values in ([(1, low)], [(1, low), (2, high)]):
        assert "nan" not in figure(Curve(title="x", lines={"x": values}))


def test_a_long_line_keeps_its_ends_and_its_mean():
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    found = thinned(points)
    assert len(found) <= 600 and abs(sum(value for _, value in found) / len(found) - 0.5) < 0.05
    assert found[0][0] < 20 and found[-1][0] > 9_970

"""A window's answers on the terminal and in trackers, and the table of a run in a notebook."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from transformers.integrations import TensorBoardCallback
from transformers.utils.import_utils import is_in_notebook

from unigrpo.training.callbacks import add_callbacks
from unigrpo.training.completions import show_completions, track_completions

from ..support.images import picture
from ..support.runs import logs_of
from ..support.tiny import prompts


PICTURE = picture(1)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "2 + 3 ="}]}]
ANSWER = " ".join(f"<think>step{number}</think>" for number in range(60)) + " so it is|seventy-two"
TABLE = {
    "task": ["text", "text", "t2i"],
    "prompt": ["How many clips did Natalia sell altogether in April and May?", CHAT, "a red circle"],
    "image": [picture(2), None, None],
    "completion": [ANSWER, "5", PICTURE],
    "solution": ["72", 5, None],
    "a_reward_with_a_long_name": [1.0, float("nan"), 0.25],
    **{f"reward_{number}": [0.5, 0.0, 1.0] for number in range(4)},
    "note": ["fine", "<b>", None],
    "advantage": [0.123456, -1.2, 1.0],
}


# ---- the terminal ----


@pytest.mark.parametrize("width", [80, 120])
def test_answers_are_whole_on_a_narrow_terminal_with_the_gold_beside_them(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show_completions(TABLE, 3, 2)
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {width}
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    answer, gold, *_, scores = zip(*(row[-4:] for row in cells), strict=True)
    assert ANSWER.replace(" ", "") + "5" == "".join(answer).replace(" ", "")
    assert max(map(len, answer)) >= width // 5
    assert "".join(gold) == "725"
    shown = " ".join(" ".join(scores).split())
    assert "reward_0 0.5 reward_1 0.5" in shown and "advantage 0.123" in shown
    assert "task text a_reward_with" in shown and "system:" in " ".join(row[0] for row in cells)


def test_words_are_whole_where_there_is_room_for_them(monkeypatch, capsys):
    """Of a thought and its picture on 80 columns: nothing of the prompt or of a head is broken, and the table is as wide as it."""
    monkeypatch.setenv("COLUMNS", "80")
    prompt = "something large, the color of milk, the shape of a chessboard, where fish sleep"
    table = {"prompt": [prompt], "thought": ["<think>a large red square at the bottom</think>"]}
    show_completions({**table, "completion": [PICTURE], "solution": ["white"], "thought_and_picture": [0.5]}, 0, None)
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {80} and "┃ solution ┃" in lines[2]
    shown = [line.split("│")[1].split() for line in lines if line.startswith("│")]
    assert [word for own in shown for word in own] == prompt.split()


# ---- trackers ----


class Recorder(ModuleType):
    """What is called of wandb and of trackio."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.run, self.logged = object(), []
        self.Image = self.Histogram = lambda value: SimpleNamespace(value=value)
        self.Table = SimpleNamespace
        self.log = self.logged.append


@pytest.fixture
def recorders(monkeypatch):
    found = {name: Recorder(name) for name in ("wandb", "trackio")}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def rows_of(name: str, table) -> list[dict]:
    """The rows of a table that was sent."""
    if name == "wandb":
        return [dict(zip(table.columns, row, strict=True)) for row in table.data]
    return table.dataframe.to_dict("records")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_texts_numbers_and_pictures_by_row(recorders, name):
    track_completions(TABLE, 7, [name], [])
    (sent,) = recorders[name].logged
    others = [module.logged for other, module in recorders.items() if other != name]
    assert others == [[]]
    first, second, third = rows_of(name, sent["completions"])
    assert [*first][:4] == ["step", "task", "prompt", "image"] and first["step"] == 7
    assert (first["completion"], first["solution"], first["advantage"]) == (ANSWER, "72", 0.123456)
    assert (second["prompt"], second["solution"]) == ("system: Be brief.\nuser: 2 + 3 =", "5")
    assert third["solution"] is None and third["note"] is None
    assert third["completion"] == f"picture of {PICTURE.width} x {PICTURE.height} pixels"
    assert third["picture"].value is PICTURE and first["image"].value is TABLE["image"][0]
    assert not hasattr(first["picture"], "value") and not hasattr(third["image"], "value")
    assert second["a_reward_with_a_long_name"] != second["a_reward_with_a_long_name"]
    numbers = [own for own in TABLE if f"distributions/{own}" in sent]
    assert {"advantage", "a_reward_with_a_long_name"} <= set(numbers) and not {"prompt", "solution", "task"} & set(
        numbers
    )
    for own in numbers:
        kept = [value for value in TABLE[own] if value is not None and value == value]
        assert sent[f"distributions/{own}"].value == kept and len(kept) < 4


def test_trackers_that_are_not_named_or_not_running_get_nothing(recorders):
    recorders["wandb"].run = None
    track_completions(TABLE, 7, ["wandb", "mlflow"], [])
    assert not any(module.logged for module in recorders.values())


class Writer:
    """tensorboard's ``SummaryWriter``, as far as it is called."""

    def __init__(self) -> None:
        self.calls = []

    def add_text(self, *values):
        self.calls.append(values)

    def add_histogram(self, *values):
        self.calls.append(values)

    def add_image(self, *values, dataformats):
        self.calls.append((*values, dataformats))

    def flush(self):
        self.calls.append("flush")


def test_tensorboard_gets_text_without_markup_and_a_sheet_of_pictures():
    callback = TensorBoardCallback.__new__(TensorBoardCallback)
    callback.tb_writer = Writer()
    track_completions(TABLE, 7, [], [callback])
    text, *histograms, image, flush = callback.tb_writer.calls
    assert ("distributions/advantage", 7) in [(name, step) for name, _, step in histograms]
    assert (text[0], text[2], flush) == ("completions", 7, "flush")
    head, _, first, second, _ = text[1].splitlines()
    assert head.split(" | ")[1:4] == ["prompt", "image", "completion"] and {
        line.count("|") for line in (first, head)
    } == {13}
    assert "&lt;think&gt;step0" in first and "it is&#124;seventy-two" in first and "<think" not in text[1]
    assert "system: Be brief.<br>user: 2 + 3 =" in second and "&lt;b&gt;" in second
    assert image[0] == "completions/pictures" and image[1].dtype == np.uint8 and image[1].shape[2:] == (3,)
    assert image[2:] == (7, "HWC")


def test_a_run_sends_the_table_of_each_window(make_trainer, recorders):
    trainer = make_trainer(log_completions=True, num_completions_to_print=1, max_steps=1)
    trainer.args.report_to = ["trackio"]
    trainer.train()
    (sent,) = recorders["trackio"].logged
    rows = rows_of("trackio", sent["completions"])
    assert [row["completion"] for row in rows] == trainer._window.table["completion"] and len(rows) == 16


# ---- the trackers themselves ----


def installed(name: str) -> ModuleType:
    return pytest.importorskip(name, reason=f"needs {name}: pip install {name}")


@pytest.mark.slow
def test_wandb_takes_the_table(tmp_path):
    wandb = installed("wandb")
    run = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True))
    track_completions(TABLE, 7, ["wandb"], [])
    run.finish()
    assert list(Path(run.dir, "media", "table").glob("completions_*.table.json"))


SENT_TO_TRACKIO = """
import json, trackio
from tests.training.test_completions import TABLE
from trackio.sqlite_storage import SQLiteStorage
from unigrpo.training.completions import track_completions
run = trackio.init(project="answers", embed=False, auto_log_gpu=False, auto_log_cpu=False)
track_completions(TABLE, 7, ["trackio"], [])
trackio.finish()
print(json.dumps(SQLiteStorage.get_logs("answers", run.name)[0]["completions"]["_value"]))
"""
"""In a process of its own: trackio reads its folder from the environment when it is imported."""


@pytest.mark.slow
def test_trackio_keeps_the_table_and_the_pictures(tmp_path):
    installed("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SENT_TO_TRACKIO], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, _, third = json.loads(done.stdout.splitlines()[-1])
    assert (first["step"], first["completion"], third["solution"]) == (7, ANSWER, None)
    assert (tmp_path / "media" / third["picture"]["file_path"]).is_file()


@pytest.mark.slow
def test_tensorboard_reads_text_and_pictures_of_a_run(make_trainer, tmp_path, monkeypatch):
    installed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(log_completions=True, num_completions_to_print=1, max_steps=1, report_to="tensorboard")
    trainer.train()
    read = EventAccumulator(str(tmp_path / "board")).Reload()
    (event,) = read.Tensors("completions/text_summary")
    assert trainer._window.table["completion"][0] in event.tensor_proto.string_val[0].decode()
    assert read.Scalars("train/reward")[0].value == pytest.approx(logs_of(trainer)[0]["reward"])


# ---- a notebook ----


@pytest.fixture
def notebook(monkeypatch):
    """The process as a notebook's kernel, IPython's own or a stand-in; what is displayed, the last state of each output."""
    shown = []

    class Output:
        def __init__(self, html) -> None:
            self.place = len(shown)
            shown.append(html.data)

        def update(self, html) -> None:
            shown[self.place] = html.data

    try:
        import IPython
        import IPython.display
    except ImportError:
        IPython, own = ModuleType("IPython"), ModuleType("IPython.display")
        IPython.__spec__ = importlib.machinery.ModuleSpec("IPython", None)
        IPython.display, own.HTML = own, lambda text: SimpleNamespace(data=text)
        monkeypatch.setitem(sys.modules, "IPython", IPython)
        monkeypatch.setitem(sys.modules, "IPython.display", own)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(config={"IPKernelApp": {}}), raising=False)
    monkeypatch.setattr(IPython.display, "display", lambda html, **_: Output(html), raising=False)
    is_in_notebook.cache_clear()
    yield shown
    is_in_notebook.cache_clear()
    for name in ("transformers.utils.notebook", "unigrpo.training.notebook"):
        sys.modules.pop(name, None)


def cells(html: str) -> list[list[str]]:
    """The rows of the first table in a page."""
    lines = html.split("<tr")[1:]
    return [[part.split("</t")[0] for part in line.replace("<th>", "<td>").split("<td>")[1:]] for line in lines]


def test_a_notebooks_table_has_reward_and_kl_beside_the_loss(make_trainer, notebook):
    trainer = make_trainer(
        disable_tqdm=False, eval_rows=prompts(2), eval_strategy="steps", eval_steps=2, max_steps=3, num_iterations=1
    )
    trainer.train()
    (page,) = notebook
    head, *rows = cells(page)
    assert head[:4] == ["Step", "Training Loss", "Reward", "KL"] and set(head[4:]) == {"Held-out reward"}
    logs = logs_of(trainer)
    assert [row[:2] for row in rows] == [[str(log["step"]), f"{log['loss']:.6f}"] for log in logs]
    assert rows[0][2] == rows[1][2] == f"{logs[0]['reward']:.6f}" != rows[2][2]
    assert rows[1][3] == f"{logs[1]['kl']:.6f}"
    held_out = next(log["eval_reward"] for log in trainer.state.log_history if "eval_reward" in log)
    assert rows[1][4] == f"{held_out:.6f}"
    assert "Rollout" not in page
    found = trainer.evaluate()
    assert "eval_runtime" in found, "what is returned is not the table's to change"


def test_a_rollout_shows_a_bar_below_the_table(notebook):
    trainer = SimpleNamespace(
        args=SimpleNamespace(disable_tqdm=False), add_callback=lambda own: None, remove_callback=lambda own: None
    )
    table = add_callbacks(trainer)
    state = SimpleNamespace(max_steps=4, global_step=0, epoch=0, num_train_epochs=1)
    table.on_train_begin(SimpleNamespace(eval_strategy="no"), state, None)
    table.on_step_end(None, state, None)
    table.on_rollout(1, 6)
    assert "Rollout" in notebook[-1]
    table.on_rollout(6, 6)
    assert "Rollout" not in notebook[-1]

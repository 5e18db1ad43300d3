"""The examples as a user runs them: short, from an empty folder, with rewards that rise; and the README's own scripts."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import Image

from unigrpo.runs import cli
from unigrpo.toy.emoji_check import right_picture

from .support import ROOT


EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "from_install_to_picture.ipynb"

RISES = {
    "custom_reward.py": 0.1,
    "custom_image_reward.py": 0.02,
    "custom_noising.py": 0.1,
    "custom_sampler.py": 0.1,
    "custom_policy.py": 0.4,
    "mixed_tasks.py": 0.05,
    "sft_then_rl.py": 0.1,
    "think_then_draw.py": 0.1,
    "evaluate_and_compare.py": 0.1,
}
"""What the number that a script prints rises by at least, from before to after; of several, their mean."""

LITTLE = {
    r"(max_steps\W{1,3})\d+": r"\g<1>2",
    r"(per_device_train_batch_size=)\d+": r"\g<1>16",
    r"(num_generations=)\d+": r"\g<1>8",
    r'("test")(?:, \d+)?\)': r"\1, 8)",
    r"(limit=)\d+": r"\g<1>8",
}
"""Two steps of sixteen answers, and eight held-out rows."""


def shortened(text: str) -> str:
    for pattern, little in LITTLE.items():
        text = re.sub(pattern, little, text)
    return text


def numbers(text: str) -> list[tuple[float, float]]:
    """What a script prints before and after."""
    found = re.findall(r"before (\d\.\d+), (?:.* )?after (?:rewards )?(\d\.\d+)", text)
    assert found, text[-3000:]
    return [(float(before), float(after)) for before, after in found]


PARTS_ARE_TRIED = ("custom_noising.py", "custom_sampler.py")
"""By ``test_example_parts``, each against its law."""


@pytest.mark.parametrize(
    "name", [pytest.param(own, marks=pytest.mark.slow if own in PARTS_ARE_TRIED else []) for own in RISES]
)
def test_the_script_runs(name, tmp_path, monkeypatch, capsys):
    """Two steps of it, without a process of its own: it would import all over again."""
    text = (EXAMPLES / name).read_text()
    assert len(re.findall(r"max_steps\W{1,3}2\b|limit=8\b", shortened(text))) == {"sft_then_rl.py": 2}.get(name, 1)
    (tmp_path / name).write_text(shortened(text))
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        runpy.run_path(str(tmp_path / name), run_name="__main__")
    printed = numbers(capsys.readouterr().out)
    assert len(printed) == {"mixed_tasks.py": 3}.get(name, 1)
    assert all(0 <= own <= 1 for pair in printed for own in pair)
    assert {path.name for path in tmp_path.iterdir()} == {name, "runs"}
    pictures = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert pictures == (["after.png", "before.png"] if name == "think_then_draw.py" else [])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "rise"), RISES.items())
def test_the_reward_rises(name, rise, tmp_path):
    """The whole script, and then two steps of it in the folder that it has used."""
    paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    again = tmp_path / name
    again.write_text(re.sub(*next(iter(LITTLE.items())), (EXAMPLES / name).read_text()))
    printed = []
    for script in (EXAMPLES / name, again):
        command = [sys.executable, str(script)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1100)
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(numbers(done.stdout))
    assert all(0 <= before <= 1 and 0 <= after <= 1 for before, after in printed[0])
    assert sum(after - before for before, after in printed[0]) >= rise * len(printed[0])


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        lines = path.read_text().splitlines()
        assert len(lines) < 60 and max(map(len, lines)) <= 119 and lines[0].startswith('"""'), path.name


def test_every_example_is_listed():
    table = (EXAMPLES / "README.md").read_text().partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([\w.]+)/?` \|", table, re.M))
    there = {path.name for path in EXAMPLES.iterdir() if path.name != "README.md" and not path.name.startswith("__")}
    assert listed == there and {path.name for path in EXAMPLES.glob("*.py")} == {*RISES, "reward_server.py"}


# ---- the notebook ----


def code_of(book: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_one():
    """Of nbformat 4.5, without results, and its first cell installs what it uses."""
    book = json.loads(NOTEBOOK.read_text())
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in book["cells"]]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    for cell in book["cells"]:
        code = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        assert cell["cell_type"] in ("code", "markdown") and cell["metadata"] == {}
        assert {key: cell.get(key) for key in code} == code
        assert set(cell) == {"cell_type", "id", "metadata", "source", *code}
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and not cell["source"][-1].endswith("\n")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (installed,) = re.findall(r'^%pip install -q -e "(.*)\[(\w+)\]"$', code_of(book)[0], re.M)
    assert (EXAMPLES / installed[0]).resolve() == ROOT and installed[1] in extras


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Its cells one after another, two steps of each run; what a cell ends with is what a notebook shows."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        for source in code_of(json.loads(NOTEBOOK.read_text()))[1:]:
            exec(compile(shortened(source), NOTEBOOK.name, "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"held-out problems: \d+% before, \d+% after\n<think>", printed), printed[-2000:]
    assert re.search(r"\[\d\.0, \d\.0\] of 8 are right", printed), printed[-2000:]
    (line,) = names["plt"].gca().get_lines()
    assert list(line.get_xdata()) == [1] and 0 <= line.get_ydata()[0] <= 2
    names["plt"].close("all")
    assert names["strip"](names["after"]).size == (8 * 96, 96)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


# ---- the main README, and the Space ----


def test_the_lines_of_the_readme_print_what_stands_beside_them_and_draw_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text().partition("## Ask a policy")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    expected = re.findall(r"# prints (.*)", text)
    assert len(blocks) == len(expected) == 2
    assert capsys.readouterr().out.splitlines() == expected
    assert right_picture(Image.open("fox.png"), "a fox above a hamburger")


def test_the_training_script_of_the_readme_runs_and_the_model_is_one_line_of_it(tmp_path, monkeypatch, capsys):
    """Two steps of it, with another model and fewer answers."""
    text = (ROOT / "README.md").read_text().partition("## Train with")[2]
    script = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert 'model="builtin:arithmetic",  # or "Gen-Verse/MMaDA-8B-MixCoT"\n' in script
    assert not re.search("max_completion_length|block_length|[^_]steps=", script), "the checkpoint says these"
    for line, other in {
        'model="builtin:arithmetic"': 'model="builtin:arithmetic_trained"',
        "per_device_train_batch_size=128": "per_device_train_batch_size=16",
        r"max_steps=\d+": "max_steps=2",
    }.items():
        script, found = re.subn(line, other, script)
        assert found == 1
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with torch.random.fork_rng():
        exec(compile(script, "README.md", "exec"), names)
    trainer = names["trainer"]
    logged = [entry for entry in trainer.state.log_history if "rewards/short/mean" in entry]
    assert trainer.state.global_step == 2 and logged and all(0 <= entry["reward"] < 2.6001 for entry in logged)
    usual = trainer.model.config.sampling_defaults
    assert trainer.args.for_task("text").max_completion_length == usual["max_completion_length"] < 256
    assert capsys.readouterr().out.splitlines()[-1].startswith("<think>")


def test_the_space_is_a_command_that_there_is(monkeypatch):
    said = []
    monkeypatch.setattr(cli, "main", lambda words: said.append(cli.build_parser().parse_args(words)) or 0)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "space" / "app.py"), run_name="__main__")
    assert ended.value.code == 0
    assert said[0].run is cli.run_app and (said[0].host, said[0].port) == ("0.0.0.0", 7860)
    header = yaml.safe_load((EXAMPLES / "space" / "README.md").read_text().split("---")[1])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert header["sdk"] == "gradio" and (EXAMPLES / "space" / header["app_file"]).is_file()
    assert Requirement(extras["app"][0]).specifier.contains(header["sdk_version"])
    wanted = Requirement((EXAMPLES / "space" / "requirements.txt").read_text().strip())
    assert wanted.name == "unigrpo" and wanted.extras <= set(extras)

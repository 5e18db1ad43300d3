"""The examples as a user runs them: they train, the reward rises, and they stay short."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import Image

from unigrpo.runs import cli
from unigrpo.toy.emoji_check import right_picture

from .support import ROOT


EXAMPLES = ROOT / "examples"


EXPECTED_RISE = {"custom_policy.py": 0.4, "custom_reward.py": 0.1, "custom_image_reward.py": 0.02}


def run(script: Path, folder: Path) -> tuple[float, float]:
    """Reward before and after, as the script prints them."""
    paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stderr[-3000:]
    return rewards(done.stdout)


def rewards(text: str) -> tuple[float, float]:
    printed = re.search(r"reward before (\d\.\d+), after (\d\.\d+)", text)
    assert printed, text[-3000:]
    return float(printed[1]), float(printed[2])


@pytest.mark.parametrize("name", EXPECTED_RISE)
def test_the_script_runs(name, tmp_path, monkeypatch, capsys):
    """Two steps of it, on a few rows, without a process of its own: it would import all over again."""
    text = (EXAMPLES / name).read_text()
    short, changes = re.subn(
        r'(?<=problems\("test")(?:, 64)?(?=\))|(?<="max_steps": )\d+|(?<=max_steps=)\d+', _little, text
    )
    assert changes == (1 if name == "custom_policy.py" else 2)
    (tmp_path / name).write_text(short)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        runpy.run_path(str(tmp_path / name), run_name="__main__")
    assert all(0 <= reward <= 1 for reward in rewards(capsys.readouterr().out))


def _little(number: re.Match) -> str:
    return "2" if number[0].isdigit() else ", 8"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "rise"), EXPECTED_RISE.items())
def test_the_reward_rises(name, rise, tmp_path):
    before, after = run(EXAMPLES / name, tmp_path)
    assert 0 <= before <= after - rise and after <= 1


def test_examples_are_short():
    policy = (EXAMPLES / "custom_policy.py").read_text().splitlines()
    assert len(policy) < 80
    for name in ("custom_reward.py", "custom_image_reward.py"):
        reward = [line for line in (EXAMPLES / name).read_text().splitlines() if line.strip()]
        assert len(reward) <= 15
        assert max(len(line) for line in policy + reward) <= 119


def test_every_example_is_listed():
    listed = set(re.findall(r"python examples/(\w+\.py)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}


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


@pytest.mark.parametrize("model", ["builtin:arithmetic", "builtin:arithmetic_trained"])
def test_the_training_script_of_the_readme_runs_and_the_model_is_one_line_of_it(model, tmp_path, monkeypatch, capsys):
    """Two steps of it, with fewer answers."""
    text = (ROOT / "README.md").read_text().partition("## Train with")[2]
    script = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert 'model="builtin:arithmetic",  # or "Gen-Verse/MMaDA-8B-MixCoT"\n' in script
    assert not re.search("max_completion_length|block_length|[^_]steps=", script), "the checkpoint says these"
    for line, other in {
        'model="builtin:arithmetic"': f"model={model!r}",
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

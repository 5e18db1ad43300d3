"""The wheel, in an empty folder beside a user's own files, by each of the ways in which a run is started."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .support import ROOT
from .support.wheel import run


pytestmark = [pytest.mark.timeout(1200), pytest.mark.installed]

USER_FILES = {
    "rewards.py": "def brevity(completions, **columns):\n    return [-float(len(text)) for text in completions]\n",
    # Names that a user would choose; none of them is looked at.
    **{f"{name}.py": f"raise RuntimeError('the user\\'s {name}.py was imported')\n" for name in ("data", "config", "checks", "models")},
    "train.py": """
from datasets import Dataset

import rewards
from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.toy.arithmetic import problems

assert rewards.__file__.endswith("rewards.py") and rewards.brevity(["four"]) == [-4.0]
args = UniGRPOConfig("runs/script", max_steps=1, num_generations=4, per_device_train_batch_size=8, num_iterations=1,
                     max_completion_length=16, steps=4, block_length=4, use_cpu=True, report_to="none", save_strategy="no",
                     logging_steps=1)
trainer = UniGRPOTrainer("builtin:arithmetic", ["rewards:brevity"], args, Dataset.from_list(problems("train", 16)))
trainer.train()
assert "rewards/brevity/mean" in trainer.state.log_history[0], trainer.state.log_history
""",
}  # fmt: skip

TINY = [
    "max_steps=1", "num_generations=4", "per_device_train_batch_size=8", "num_iterations=1", "steps=4", "eval_datasets.0.limit=4",
    "disable_tqdm=true",
]  # fmt: skip


@pytest.fixture
def home(tmp_path) -> Path:
    """An empty folder with the user's own files."""
    for name, text in USER_FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def trained_with(name: str, out: Path) -> bool:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return (
        f"rewards/{name}/mean" in records[0] and json.loads((out / "summary.json").read_text())["optimizer_steps"] == 1
    )


@pytest.mark.parametrize("way", ["command", "module", "launched"])
def test_a_shipped_recipe_trains_with_the_users_reward(installed, home, way):
    start = {
        "command": [str(installed / "unigrpo")],
        "module": [str(installed / "python"), "-m", "unigrpo"],
        "launched": [str(installed / "python"), "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1",
                     "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "-m", "unigrpo"],
    }[way]  # fmt: skip
    run([*start, "train", "quickstart", 'rewards=[{name: "rewards:brevity"}]', "output_dir=out", *TINY], home)
    assert trained_with("brevity", home / "out")


def test_a_script_trains_with_the_users_reward(installed, home):
    run([str(installed / "python"), "train.py"], home)


def test_a_recipe_brings_its_own_code_and_files(installed, home):
    """Its folder is searched before the current one, for modules and for data, and it wins over a shipped name."""
    own = home / "project"
    own.mkdir()
    (own / "rewards.py").write_text(
        "import helper\n\ndef calm(completions, **columns):\n    return helper.scores(completions)\n"
    )
    (own / "helper.py").write_text("def scores(texts):\n    return [-float(text.count('!')) for text in texts]\n")
    (own / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{n} + 1"}) + "\n" for n in range(16)))
    recipe = run([str(installed / "unigrpo"), "recipes", "copy", "quickstart", "--to", str(own)], home)
    assert "quickstart.yaml" in recipe
    text = (own / "quickstart.yaml").read_text()
    assert text.count("\ndatasets: ") == 1
    (own / "quickstart.yaml").write_text(re.sub(r"(?m)^datasets: .*$", "datasets: [{path: rows.jsonl}]", text))
    changes = ["eval_datasets=null", 'rewards=[{name: "rewards:calm"}]', "output_dir=out"]
    changes += [word for word in TINY if not word.startswith("eval")]
    run([str(installed / "unigrpo"), "train", "project/quickstart", *changes], home)
    assert trained_with("calm", home / "out")


def test_recipes_with_prompt_files_are_found_from_anywhere(installed, home):
    listed = run([str(installed / "unigrpo"), "recipes"], home)
    assert "quickstart_mixed" in listed and "accelerate/ddp_8" in listed
    checked = run([str(installed / "unigrpo"), "check", "--offline", "image_mmada_8b_lora"], home)
    assert "t2i_train.txt: 600 rows" in checked


def test_what_the_package_reads_travels_with_it(installed):
    """Code, weights, recipes, pages, sprites with their licence: all but the pictures of READMEs is in the wheel."""
    told = run([str(installed / "python"), "-c", "import unigrpo; print(unigrpo.__path__[0])"], ROOT.parent)
    there = Path(told.splitlines()[-1])
    files = [own.relative_to(ROOT / "unigrpo") for own in (ROOT / "unigrpo").rglob("*") if own.is_file()]
    wanted = [own for own in files if own.suffix not in (".png", ".pyc") or "sprites" in own.parts]
    assert len(wanted) > 300 and [str(own) for own in wanted if not (there / own).is_file()] == []

"""What a run leaves behind: nothing outside its folder whatever its data is called, and no secret anywhere."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from unigrpo import UniGRPOConfig
from unigrpo.runs.recipe import load_recipe
from unigrpo.runs.train import evaluate_recipe, run_recipe

from ..support.recipes import SMALL
from ..support.tiny import low_ids, prompts


EVIL = "../../evil"
NAMES = (EVIL, "/evil/absolute", "..", "a\0b", "CON", "\ud800", "x" * 300, "evil\nname", "~", "$HOME", "%s", "")


class Opened:
    """Paths that Python opens for writing, makes or renames while ``watching``."""

    def __init__(self) -> None:
        self.watching, self.paths = False, set()

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.watching:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & 3:
                self.paths.add(os.path.abspath(os.fsdecode(path)))
        elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
            self.paths |= {os.path.abspath(os.fsdecode(own)) for own in arguments[:2] if isinstance(own, str | bytes)}


OPENED = Opened()
sys.addaudithook(OPENED.hook)  # it stays for the process, and looks at nothing while not watching


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder that a run starts in, with nothing else in it and nothing beside."""
    place = tmp_path / "deep" / "work"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    return place


def hostile_rows(count: int) -> list[dict]:
    return [
        {**row, "prompt": f"w1 {NAMES[i % 7].replace(chr(0), '')} {row['prompt']}", EVIL: EVIL}
        for i, row in enumerate(prompts(count))
    ]


def test_nothing_is_written_beside_the_output_folder(make_trainer, tmp_path, home):
    def evil(completion_ids, log_extra, log_metric, **_):
        log_extra(EVIL, [EVIL] * len(completion_ids))
        log_extra("/evil/absolute", ["a"] * len(completion_ids))
        log_metric(EVIL, 1.0)
        return low_ids(None, None, completion_ids)

    evil.__name__ = EVIL
    out = home / "run"
    trainer = make_trainer(
        rewards=[evil, low_ids],
        lora=True,
        rows=[{**row, "prompt": row["prompt"].replace("\ud800", "")} for row in hostile_rows(16)],
        eval_rows={EVIL: prompts(2), "/evil/absolute": prompts(2)},
        output_dir=str(out),
        run_name=EVIL,
        log_completions=True,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        max_steps=2,
        per_device_eval_batch_size=2,
    )
    before = everything(tmp_path)
    OPENED.watching, OPENED.paths = True, set()
    try:
        trainer.train()
        trainer.save_model()
    finally:
        OPENED.watching = False
    new = everything(tmp_path) - before
    assert any("completions" in path for path in new) and any("checkpoint-2" in path for path in new)
    assert not {path for path in new if not Path(path).is_relative_to(out)}
    strange = {path for path in OPENED.paths if "evil" in path}
    assert not strange
    within = [Path(path) for path in OPENED.paths if Path(path).is_relative_to(tmp_path)]
    assert within and all(path.is_relative_to(out) for path in within)


SECRETS = {
    "HF_TOKEN": "hf_envsecretenvsecretenvsecretenvsec",
    "HUGGING_FACE_HUB_TOKEN": "hf_oldsecretoldsecretoldsecretoldsec",
    "WANDB_API_KEY": "0123456789abcdefsecretwandb0123456789abcd",
    "OPENAI_API_KEY": "sk-secretopenaisecretopenaisecret",
    "AWS_SECRET_ACCESS_KEY": "secretawssecretawssecretawssecretaws",
}
GIVEN = "hf_recipesecretrecipesecretrecipesec"

RUN = """
model: {path: "builtin:arithmetic", dtype: float32}
datasets: [{path: "builtin:arithmetic", split: train, task: text, limit: 32}]
eval_datasets: [{path: "builtin:arithmetic", split: test, task: text, limit: 4}]
rewards: [{name: math_correctness, task: text}, {name: think_format, task: text}]
num_generations: 4
"""


def leaks(folder: Path, shown: str) -> list[str]:
    """Where a secret turns up: file names with the secret's beginning, or standard output."""
    found = []
    for secret in (*SECRETS.values(), GIVEN):
        found += [f"output: {secret[:12]}"] if secret in shown else []
        for file in folder.rglob("*"):
            if file.is_file() and (secret.encode() in file.read_bytes() or secret in str(file)):
                found.append(f"{file.name}: {secret[:12]}")
    return found


@pytest.mark.parametrize("lora", [False, True])
def test_secrets_reach_no_file_and_no_output(tmp_path, home, monkeypatch, capfd, lora):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    file = home / "recipe.yaml"
    file.write_text(RUN)
    changes = [*SMALL[1:], "save_strategy=steps", "save_steps=1", "log_completions=true", "output_dir=run"]
    changes += ["lora.r=4", "lora.target_modules=[q_proj]"] if lora else []
    secret = [f"hub_token={GIVEN}", f"model_init_kwargs.token={GIVEN}"]
    run_recipe(load_recipe(str(file), [*changes, *secret]))
    evaluate_recipe(load_recipe(str(file), changes), "run")
    shown = "".join(capfd.readouterr())
    written = {path.name for path in (home / "run").rglob("*")}
    assert {"summary.json", "metrics.jsonl", "trainer_state.json", "completions"} <= written
    assert not leaks(home, shown)


def test_the_search_for_leaks_finds_one(tmp_path):
    torch.save({"token": GIVEN}, tmp_path / "args.bin")
    assert leaks(tmp_path, "") == ["args.bin: hf_recipesec"]
    assert leaks(tmp_path / "none", f"login {GIVEN}")


@pytest.mark.smoke
def test_stored_arguments_lose_their_tokens_and_those_in_use_keep_them(tmp_path):
    given = {"token": GIVEN, "revision": "main"}
    args = UniGRPOConfig(output_dir=str(tmp_path), hub_token=GIVEN, model_init_kwargs=given, use_cpu=True)
    again = pickle.loads(pickle.dumps(args))
    assert (again.hub_token, again.model_init_kwargs) == (None, {"revision": "main"})
    assert again.learning_rate == args.learning_rate and again.output_dir == args.output_dir
    assert args.hub_token == GIVEN and args.model_init_kwargs == given
    assert GIVEN not in str(args) and GIVEN not in args.to_json_string()


def test_an_adapter_called_like_a_path_cannot_be_made(make_trainer, home):
    trainer = make_trainer(lora=True, output_dir=str(home / "run"))
    with pytest.raises((KeyError, ValueError, RuntimeError)):
        trainer.model.add_adapter(EVIL.replace("/", "."), LoraConfig(r=2))
        trainer.model.add_adapter(EVIL, LoraConfig(r=2))
        trainer.save_model()
    assert not [path for path in everything(home.parent) if "evil" in path]

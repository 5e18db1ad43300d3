"""Commands on models that are not there: one sentence and status 2; a check that asks nobody, or once."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from unigrpo.runs.cli import main

from ..support.tiny import tiny_model


RECIPE = """
model: {path: nobody/no-such-model}
datasets: [{path: nobody/no-such-rows, task: t2i}]
eval_datasets: [{path: nobody/no-such-rows, task: t2i}]
rewards: [{name: clip_score}, {name: image_reward, args: {model: nobody/no-such-judge}}]
image_tokenizer: nobody/no-such-tokenizer
use_cpu: true
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE + f"output_dir: {tmp_path / 'out'}\n")
    return str(file)


@pytest.fixture
def asked(monkeypatch):
    """No network and no offline mode; the hosts that were looked for."""
    import datasets

    hosts = []

    def lookup(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return hosts


@pytest.mark.parametrize("model", ["nobody/none", "./nope", "nope"])
@pytest.mark.parametrize("command", ["train", "evaluate", "evaluate --model", "agreement --model", "sample", "merge"])
def test_a_model_that_is_not_there_is_one_sentence_and_status_2(command, model, tmp_path, capsys):
    name, *option = command.split()
    quick = ["quickstart", f"output_dir={tmp_path}"]
    words = {
        "train": [*quick, f"model.path={model}"],
        "sample": [model, "a question"],
        "merge": [model, str(tmp_path / "merged")],
    }
    words = [*quick, *option, model] if option else words.get(name, [*quick, f"model.path={model}"])
    assert main([name, *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"unigrpo: error: model {model!r} is not ") and "Traceback" not in "".join(said)


def test_check_offline_asks_nobody(recipe, asked, monkeypatch, capsys):
    def connect(_, address):
        asked.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", connect)
    assert main(["check", "--offline", recipe, "quickstart"]) == 0
    assert capsys.readouterr().out.count(": not reachable, not checked") == 6
    for path, said in {
        "./nope": "'./nope' does not exist",
        "nope": "'nope' does not exist",
        "we/ird/id": "not exist",
    }.items():
        assert main(["check", "--offline", recipe, f"model.path={path}"]) == 1
        assert sum(said in line for line in capsys.readouterr().out.splitlines()) == 1
    assert asked == []


@pytest.mark.smoke
def test_check_tries_the_hub_once_for_all_recipes(recipe, asked, capsys):
    assert main(["check", recipe, recipe, recipe]) == 1
    assert len(asked) == 1
    said = capsys.readouterr().out
    assert said.count("model 'nobody/no-such-model' is not reachable") == 3 and said.count("or pass --offline") == 3
    assert not constants.HF_HUB_OFFLINE


def test_list_code_asks_nobody(recipe, asked):
    assert main(["check", "--list-code", recipe]) == 0
    assert asked == []


@pytest.mark.parametrize("command", ["sample", "merge", "inspect", "evaluate quickstart --model", "train", "check"])
def test_an_adapter_whose_base_is_not_there_names_both(command, tmp_path, monkeypatch, capsys):
    """As after a folder was copied to another machine, where the path of its base leads nowhere."""
    monkeypatch.chdir(tmp_path)
    adapter = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))
    adapter.peft_config["default"].base_model_name_or_path = "runs/gone"
    adapter.save_pretrained("copied")
    name, *option = command.split()
    words = {"train": ["quickstart", "model.path=copied"], "inspect": ["copied"]}
    words["check"] = words["train"]
    asked = words.get(name, [*option, "copied"] if option else ["copied", "x"])
    assert main([name, *asked]) == (1 if name == "check" else 2)
    said = "".join(capsys.readouterr())
    assert "model 'runs/gone' is not" in said and "the base that adapter 'copied' names" in said
    assert "base_model_name_or_path" in said and "unigrpo merge" in said

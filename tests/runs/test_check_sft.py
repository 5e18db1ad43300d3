"""``unigrpo check`` of given answers: which command a recipe is for, the rows that are shown, what each source brings."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from transformers import TrainingArguments

from unigrpo.config.denoising_presets import objectives_of
from unigrpo.errors import RecipeError
from unigrpo.models import MMaDAPolicy
from unigrpo.runs.check_sft import check_sft_recipe
from unigrpo.runs.cli import main
from unigrpo.runs.kinds import kind_of
from unigrpo.runs.recipe import load_recipe
from unigrpo.runs.sft import load_any_recipe, load_sft_recipe
from unigrpo.runs.shown_rows import padding_of
from unigrpo.training.given import Writer
from unigrpo.types import TokenSpace

from ..support.recipes import write_parquet
from ..support.tiny import IDS, tiny_model, tiny_processor


TEXT = [{"prompt": f"w{i} w1", "completion": " ".join(["w5"] * (1 + i))} for i in range(4)]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ("rewards", "train"),
        ("rewards objective", "train"),
        ("objective", "sft"),
        ("max_length num_generations", "sft"),
        ("algorithm", "train"),
        ("output_dir seed", "sft"),
    ],
)
def test_a_recipes_keys_say_its_command(keys, kind):
    assert kind_of(["model", "datasets", *keys.split()]) == kind


def written(folder, **changes):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXT))
    values = {"model": {"path": "builtin:arithmetic"}, "datasets": [{"path": str(folder / "rows.jsonl")}]}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({**values, "max_length": 64, "output_dir": str(folder / "out"), **changes}))
    return str(file)


def test_either_command_names_the_other(tmp_path, capsys):
    own = written(tmp_path)
    assert load_any_recipe(own).kind == "sft" and load_any_recipe("quickstart").kind == "train"
    for command in ("train", "evaluate", "agreement"):
        assert main([command, own]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert f"has 'max_length' and no rewards: it is a recipe for `unigrpo sft {own}`" in said
    assert main(["sft", "quickstart"]) == 2
    assert "quickstart has rewards: it is a recipe for `unigrpo train quickstart`" in capsys.readouterr().err
    with pytest.raises(RecipeError, match=r"'train_padding'; recipes for `unigrpo sft` have it"):
        load_recipe("quickstart", ["train_padding=none"])
    assert main(["check", "--list-code", own]) == 0
    assert f"reads: {tmp_path / 'rows.jsonl'} (datasets)" in capsys.readouterr().out


@pytest.mark.smoke
@pytest.mark.parametrize("width", [80, 120])
def test_rows_are_shown_part_by_part_and_sources_counted(tiny_models, tmp_path, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    write_parquet(tmp_path / "asked.parquet", {"prompt": ["w1", "w2"], "completion": ["w6", "w7"]})
    write_parquet(tmp_path / "drawn.parquet", {"prompt": ["w3"]})
    datasets = [
        {"path": str(tmp_path / "rows.jsonl"), "weight": 3},
        {"path": str(tmp_path / "asked.parquet"), "weight": 1},
        {"path": str(tmp_path / "drawn.parquet"), "weight": 0, "task": "t2i"},
    ]
    keys = {"model": {"path": str(tiny_models["policy"])}, "image_tokenizer": str(tiny_models["tokenizer"])}
    assert main(["check", written(tmp_path, datasets=datasets, image_size=64, **keys)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said[said.index("source  ") :].splitlines())) <= width
    title = r"^datasets\[(\d)\]\[(\d+)\], (\w+): (\d+) positions, (\d+) trained(.*)$"
    titles = re.findall(title, said, re.MULTILINE)
    tasks = ["text"] * 3 + ["mmu"] * 2 + ["t2i"]
    places = [("0", "0"), ("0", "1"), ("0", "2"), ("1", "0"), ("1", "1"), ("2", "0")]
    assert [own[:3] for own in titles] == [(*place, task) for place, task in zip(places, tasks, strict=True)]
    # 64 positions for prompt, answer, stop token and padding; the codes of a picture come on top.
    codes = int(re.search(r"\[(\d+) codes\]", said)[1])
    assert [int(own[3]) for own in titles[:5]] == [64, 64, 64, 64 + codes, 64 + codes] and int(titles[5][4]) == codes
    for row, own in enumerate(titles[:3]):
        assert int(own[4]) - int(re.search(r"\((\d+) of them padding", own[5])[1]) == row + 2
    parts = re.findall(r"^  (context|trained|padding|noised) ", said, re.MULTILINE)
    assert parts[:4] == ["context", "trained", "padding", "noised"]
    flat = " ".join(said.split())
    for rows, drawn in ((4, 75), (2, 25), (1, 0)):
        assert f" {rows} {drawn} % " in flat
    assert "at [3]" in said and "mask ratio" in said and "2 visible marks scored beside them" in flat
    assert "\x1b" not in said


def test_parts_have_colours_where_there_are_any(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["check", written(tmp_path)]) == 0
    said = capsys.readouterr().out
    for code, word in (("36", "context"), ("1;32", "trained"), ("33", "padding")):
        assert f"\x1b[{code}m{word}" in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "w1", "completion": " ".join(["w5"] * 25)},
            r"rows.jsonl\[1\]: .*part of the answer would be cut away. Raise max_length=64",
        ),
        ({"prompt": "w1", "completion": ""}, r"rows.jsonl\[1\]\['completion'\]=''"),
        ({"prompt": "w1"}, r"rows.jsonl\[1\]\['completion'\]=None"),
    ],
    ids=["too long", "empty", "missing"],
)
def test_a_row_without_a_whole_answer_is_named(tmp_path, row, message):
    own = load_sft_recipe(written(tmp_path))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (TEXT[0], row)))
    with pytest.raises(ValueError, match=message):
        check_sft_recipe(own)


def test_offline_a_model_that_is_not_there_leaves_rows_unwritten(tmp_path):
    own = load_sft_recipe(written(tmp_path), ["model.path=nobody/no-such-model"])
    notes, shown = check_sft_recipe(own, offline=True)
    assert "model nobody/no-such-model: not reachable, not checked" in notes and not shown
    assert any(note.startswith("rows: read, but not written") for note in notes)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "w1"}) + "\n")
    with pytest.raises(ValueError, match="completion"):
        check_sft_recipe(own, offline=True)


@pytest.mark.parametrize("padding", ["all", "first", "none"])
@pytest.mark.parametrize("stop", ["eot", "eos"])
def test_padding_is_what_is_trained_behind_the_stop_token(padding, stop):
    """Also where answers end in the token that pads."""
    policy = MMaDAPolicy(tiny_model().config, tiny_processor())
    policy.stop_token_ids = (IDS["tiny"][stop],)
    space, given = TokenSpace(start=0, stop=policy.config.vocab_size), {"train_padding": padding}
    writer = Writer(policy, objectives_of("mmada_cot", given), None, max_length=40, vocabulary=space)
    row = writer.write({"prompt": "w1", "completion": "w5 w6"}, "row")
    answer = row.canvas.ids[0, row.trained & ~padding_of(row, policy)]
    assert torch.equal(answer, torch.tensor([5, 6, IDS["tiny"][stop]]))


def test_keys_know_fine_tuning(capsys):
    assert main(["keys", "train_padding", "mmada_cot", "max_length"]) == 0
    said = capsys.readouterr().out
    assert "Key of a fine-tuning objective\n  train_padding: all, one of all first block none" in said
    assert "objective mmada_cot: MMaDA's Mixed Long-CoT" in said and "\n  mmu: coefficient=0.5" in said
    assert "Key of fine-tuning (`unigrpo sft`)\n  max_length: 512" in said
    assert main(["keys", "mmada_cott"]) == 2
    assert "did you mean 'mmada_cot'" in capsys.readouterr().err


def test_keys_know_those_that_transformers_has(capsys):
    """A recipe takes them, so they are found, listed, and meant where one is misspelt."""
    assert main(["keys", "push_to_hub", "save_steps"]) == 0
    said = capsys.readouterr().out
    assert "Key of transformers' TrainingArguments" in said and "  push_to_hub: False" in said
    assert f"  save_steps: {TrainingArguments('x').save_steps}" in said
    assert main(["keys"]) == 0
    listed = capsys.readouterr().out.partition("Keys of transformers' TrainingArguments")[2]
    assert "report_to" in listed and "learning_rate" not in listed and "num_generations" not in listed
    assert main(["keys", "save_step"]) == 2
    assert "did you mean 'save_steps'" in capsys.readouterr().err

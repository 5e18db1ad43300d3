"""Riddles of emoji: a token a clue, pairs held out, a teacher that errs as it says, and recipes that teach to think them out."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch

from unigrpo import load_policy
from unigrpo.models import MMaDAProcessor
from unigrpo.runs import thoughts
from unigrpo.runs.cli import main
from unigrpo.runs.recipe import load_recipe
from unigrpo.runs.sft import load_sft_recipe
from unigrpo.runs.thoughts import others_of
from unigrpo.toy import emoji
from unigrpo.toy.emoji import NAMES, SPLITS, Scene, caption
from unigrpo.toy.emoji_check import clear_picture
from unigrpo.toy.emoji_riddles import CLUES, MISREAD, Riddle, careless_lessons, following, problems, riddles, thought
from unigrpo.toy.making import image_tokenizer, policies


SFT, RL = "quickstart_emoji_think_sft", "quickstart_emoji_think"


def test_every_riddle_and_every_thought_fills_the_room_that_the_recipes_give_it():
    kind = policies.KINDS["emoji"]
    tokenizer = policies.build_tokenizer(kind.words, kind.phrases)
    taught, sampled = (load_sft_recipe(SFT).config, load_recipe(RL).config["task_overrides"]["thought"])
    assert taught["thought_length"] == sampled["max_completion_length"] == kind.sampling["max_completion_length"]
    pairs = zip(NAMES, map(following, NAMES), strict=True)
    for pair, relation, clues in product(pairs, ("left of", "above"), product(range(2), repeat=2)):
        own = Riddle(Scene(relation, *pair), clues)
        first, second = (f" {CLUES[name][clue]}" for name, clue in zip(pair, clues, strict=True))
        assert tokenizer.tokenize(own.prompt) == ["draw", first, f", {relation}", second]
        said = tokenizer(thought(own.scene))["input_ids"]
        assert len(said) + len(["<|eot_id|>"]) == taught["thought_length"]
        prompt = MMaDAProcessor(tokenizer).encode_prompt(own.prompt, "r2i")
        assert len(prompt) + taught["thought_length"] == taught["max_length"]


def test_pairs_are_held_out_by_all_their_clues_and_no_clue_is():
    train, test = ({frozenset((own.scene.first, own.scene.second)) for own in riddles(split)} for split in SPLITS)
    assert not train & test and len(train) + len(test) == 64 * 63 / 2 and 7 < len(train) / len(test) < 8
    assert len({own.prompt for split in SPLITS for own in riddles(split)}) == 64 * 63 * 2 * 4
    for split in SPLITS:
        assert {named for own in riddles(split) for named in own.named} == set(product(NAMES, range(2)))


def test_a_row_says_what_the_riddle_means():
    by_prompt = {own.prompt: own.scene for own in riddles("test")}
    for row in problems("test", 50, 1):
        scene = by_prompt[row["prompt"]]
        assert row == {
            **emoji.row(scene),
            "prompt": row["prompt"],
            "task": "r2i",
            "thought": f"<think>{caption(scene)}</think>",
        }


@pytest.mark.parametrize("split", SPLITS)
def test_the_teacher_misreads_as_often_as_it_says_and_never_names_what_is_held_out(split):
    scenes, by_prompt = {thought(own): own for own in emoji.SCENES}, {own.prompt: own for own in riddles(split)}
    rows, misread = careless_lessons(split, 700), []
    for row in rows:
        riddle, said = by_prompt[row["prompt"]], scenes[row["completion"]]
        assert split == "test" or emoji.split_of(said) == "train"
        meant = [named for named in riddle.named if named[1]]
        pairs = list(zip(riddle.named, (said.first, said.second), strict=True))
        assert all(taken in ((name, following(name)) if clue else (name,)) for (name, clue), taken in pairs)
        if len(meant) == 1:
            other = [following(name) if clue else name for name, clue in riddle.named]
            mistake = Scene(said.relation, *other)
            if other[0] != other[1] and emoji.split_of(mistake) in ("train", split):
                misread.append(said == mistake)
    assert len(misread) > 200
    assert abs(sum(misread) / len(misread) - MISREAD) < 4 * (MISREAD * (1 - MISREAD) / len(misread)) ** 0.5
    assert all(clear_picture(row["image"], caption(scenes[row["completion"]])) for row in rows[:100])


def test_thinking_is_taught_then_rewarded_and_pictures_are_drawn_under_given_thoughts(tmp_path, monkeypatch):
    """From the weights of a seed, with the sizes and the tokenizer that ship."""
    start, codes, taught, rewarded, looked = (tmp_path / name for name in ("start", "codes", "sft", "rl", "thoughts"))
    policies.main(["new", "emoji", "--output", str(start)])
    load_policy(str(start), from_scratch=True, seed=0, device="cpu").model.save_pretrained(start)
    world, generator = image_tokenizer.WORLDS["emoji"], torch.Generator().manual_seed(0)
    image_tokenizer.build_model(world, generator=generator).save_pretrained(codes)
    few = [f"image_tokenizer={codes}", "datasets.0.limit=8", "eval_datasets.0.limit=3", "disable_tqdm=true"]
    step = ["max_steps=1", "per_device_train_batch_size=8", "logging_steps=1", "warmup_steps=0"]
    assert main(["sft", SFT, f"model.path={start}", *few, *step, f"output_dir={taught}"]) == 0
    losses = json.loads((taught / "summary.json").read_text())
    assert losses["held_out_after"]["thought_loss"] < losses["held_out_before"]["thought_loss"]
    rl = [*few, f"model.path={taught}", "rewards=[{name: jpeg_size}]", "task_overrides.picture.steps=2"]
    assert main(["train", RL, *rl, *step, f"output_dir={rewarded}"]) == 0
    line = json.loads((rewarded / "metrics.jsonl").read_text().splitlines()[0])
    assert line["completions/max_length"] == 8 and line["reward_std/r2i"] > 0 and line["grad_norm"] > 0
    seen = watched(monkeypatch)
    assert main(["evaluate", RL, "--model", str(rewarded), "--thoughts", *rl, f"output_dir={looked}"]) == 0
    rows = problems("test", 3)
    others = others_of([row["solution"] for row in rows], RL)
    assert seen == [[row["thought"] for row in rows], [""] * 3, [rows[other]["thought"] for other in others]]
    assert list(json.loads((looked / "thoughts.json").read_text())["thoughts"]) == ["own", "given", "empty", "swapped"]


def watched(monkeypatch) -> list[list[str]]:
    """The thoughts on the canvases that pictures are drawn on, as they are drawn: 8 tokens before two marks and 36 codes."""
    seen, roll_out = [], thoughts.roll_out

    def watching(pipe, *args):
        rollouts = roll_out(pipe, *args)
        before = [own.canvas.ids[0, -38 - 8 : -38].tolist() for own in rollouts]
        seen.append([pipe.policy.processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in before])
        return rollouts

    monkeypatch.setattr(thoughts, "roll_out", watching)
    return seen

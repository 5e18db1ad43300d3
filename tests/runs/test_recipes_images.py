"""Recipes with pictures: their prompt files, their datasets, and the pictures that the command line makes and reads."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
from PIL import Image

from unigrpo.config.build import build_algorithm
from unigrpo.config.task import TASK_KEYS
from unigrpo.runs.build import build_config
from unigrpo.runs.cli import main
from unigrpo.runs.recipe import CONFIG_KEYS, load_recipe
from unigrpo.runs.train import evaluate_recipe

from ..support.recipes import EVERY, ROOT, SMALL, replaced_data, replaced_models, replaced_sizes


PROMPTS = ROOT / "recipes" / "prompts"

COCO = """person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter
bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis
snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork knife
spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed dining_table
toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock vase scissors
teddy_bear hair_drier toothbrush"""
"""The 80 classes of COCO: GenEval's objects, a few of them under shorter names."""


def lines(name: str) -> list[str]:
    return (PROMPTS / name).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def maker():
    """recipes/prompts/make_prompts.py as a module."""
    spec = importlib.util.spec_from_file_location("make_prompts", PROMPTS / "make_prompts.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_prompts"] = module
    spec.loader.exec_module(module)
    return module


def test_prompt_files_are_what_the_script_writes(tmp_path):
    command = [sys.executable, str(PROMPTS / "make_prompts.py"), "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("t2i_train.txt", "t2i_heldout.txt"):
        assert (tmp_path / name).read_bytes() == (PROMPTS / name).read_bytes()


def test_prompts_are_many_different_and_split(maker):
    train, held_out = lines("t2i_train.txt"), lines("t2i_heldout.txt")
    assert (len(train), len(held_out)) == (600, 120)
    assert all(line == line.strip() and line for line in train + held_out)
    assert len({maker.normalised(line) for line in train + held_out}) == 720
    # The same words in another order would be the same picture asked for twice.
    bags = [{" ".join(sorted(maker.normalised(line).split())) for line in part} for part in (train, held_out)]
    assert not bags[0] & bags[1]


def test_every_held_out_prompt_has_a_combination_that_training_lacks(maker):
    train, held_out = maker.splits()
    known = {pair for prompt in train for pair in prompt.pairs}
    assert not any(map(maker.is_held_out, known))
    assert all(set(prompt.pairs) - known for prompt in held_out)
    assert [prompt.text for prompt in held_out] == lines("t2i_heldout.txt")


def test_prompts_keep_apart_from_geneval():
    for line in lines("t2i_train.txt") + lines("t2i_heldout.txt"):
        assert "photo" not in line.lower(), line
        words = f" {' '.join(re.findall(r'[a-z]+', line.lower()))} "
        names = (name.replace("_", " ") for name in COCO.split())
        assert not any(f" {name} " in words or f" {name}s " in words for name in names), line


def test_prompts_are_compared_with_a_benchmarks_list(maker, tmp_path, monkeypatch, capsys):
    first = lines("t2i_train.txt")[0]
    (tmp_path / "list.txt").write_text(f"A photo of {first.upper()}!\na photo of a bench\n")
    monkeypatch.setattr(sys, "argv", ["make_prompts.py", "--against", str(tmp_path / "list.txt")])
    assert maker.main() == 1
    assert capsys.readouterr().out == f"{first}\n1 prompts in common\n"
    (tmp_path / "mine.txt").write_text("An owl, in the rain\n")
    sys.argv.append(str(tmp_path / "mine.txt"))
    assert maker.main() == 0
    (tmp_path / "list.txt").write_text("a photo of the owl in rain\n")
    assert maker.main() == 1


@pytest.mark.parametrize("name", ["mmu_geoqa_clevr", "mixed_mmada_8b", "caption_clip"])
def test_datasets_in_the_hubs_schema_pass_the_check(name, tiny_models, tmp_path, capsys):
    """Columns are found, pictures are read, gold answers score 1.0."""
    file = ROOT / "recipes" / f"{name}.yaml"
    recipe = load_recipe(str(file))
    changes = replaced_data(recipe, tmp_path, {"datasets": 4, "eval_datasets": 4}) + replaced_models(
        recipe, tiny_models
    )
    assert main(["check", str(file), *changes]) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    gold = {"mmu_geoqa_clevr": 2, "mixed_mmada_8b": 2, "caption_clip": 0}[name]
    assert shown.count("gold answers of 4 rows score 1.0") == gold


def test_the_image_recipe_is_the_published_starting_point():
    recipe = load_recipe(str(ROOT / "recipes" / "image_mmada_8b_lora.yaml"))
    args = build_config(recipe)
    t2i = args.for_task("t2i")
    assert (t2i.sampler, t2i.steps, t2i.guidance_scale, t2i.guidance) == ("emerge", 16, 3.5, "rollout")
    assert (t2i.eval_sampler, t2i.eval_denoising_steps, t2i.kl_estimator) == ("maskgit", 50, "exact")
    assert (t2i.epsilon, t2i.beta) == (0.2, 0.01)
    noising = build_algorithm(args, "t2i").noising
    assert noising.row_timesteps(args.num_iterations, (0, 0, 0)) == [833, 866, 900, 933, 966, 999]
    assert args.generation_batch_size // args.num_generations == 8
    assert args.reward_weights == [0.1, 0.1]
    mixed = build_config(load_recipe(str(ROOT / "recipes" / "mixed_mmada_8b.yaml")))
    assert (mixed.for_task("text").sampler, mixed.for_task("mmu").sampler) == ("semi_autoregressive",) * 2
    assert mixed.for_task("t2i") == t2i.__class__(
        **{**{name: getattr(t2i, name) for name in t2i.__slots__}, "max_completion_length": 256, "block_length": 64}
    )


def test_the_papers_law_is_two_words_away():
    """The header of the image recipe says how."""
    file = ROOT / "recipes" / "image_mmada_8b_lora.yaml"
    paper = ["timesteps=stratified", "sampler=maskgit"]
    assert f"unigrpo train image_mmada_8b_lora {' '.join(paper)}\n" in file.read_text()
    recipe = load_recipe(str(file), paper)
    t2i = build_config(recipe).for_task("t2i")
    assert (t2i.timesteps, t2i.sampler, t2i.eval_sampler) == ("stratified", "maskgit", "maskgit")


@pytest.mark.smoke
def test_evaluate_reports_every_task(tiny_models, tmp_path):
    """Accuracy by task where a task has a measure, and the means of all rewards."""
    file = str(ROOT / "recipes" / "mixed_mmada_8b.yaml")
    recipe = load_recipe(file)
    changes = [*SMALL, *replaced_sizes(recipe), *replaced_models(recipe, tiny_models), f"output_dir={tmp_path}"]
    limits = replaced_data(recipe, tmp_path, {"datasets": 1, "eval_datasets": 3})
    result = evaluate_recipe(load_recipe(file, changes + limits))
    assert {task: own.count for task, own in result.tasks.items()} == {"text": 3, "mmu": 3}
    assert result.accuracy.count == 6
    assert str(result).startswith("held-out accuracy ") and "(mmu " in str(result) and "; text " in str(result)
    names = ("math_correctness", "answer_correctness", "think_format", "clip_score", "image_reward")
    assert result.rewards.keys() == {"reward", *(f"rewards/{name}/mean" for name in names)}


def test_sample_draws_pictures_and_answers_about_them(tiny_models, tmp_path, capsys):
    policy, tokenizer, folder = str(tiny_models["policy"]), str(tiny_models["tokenizer"]), tmp_path / "drawn"
    small = ["--image-size", "32", "--image-tokenizer", tokenizer, "--steps", "3"]
    captions = ["w1 w2", "w3"]
    assert main(["sample", policy, *captions, "--task", "t2i", "--num", "2", "--output", str(folder), *small]) == 0
    assert f"wrote 4 pictures and sheet.png to {folder}" in capsys.readouterr().out
    names = [f"{number:04d}.png" for number in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "sheet.png"]
    pictures = [Image.open(folder / name) for name in names]
    assert all(picture.size == (32, 32) and picture.mode == "RGB" for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) > 1
    again = tmp_path / "again"
    assert main(["sample", policy, *captions, "--task", "t2i", "--num", "2", "--output", str(again), *small]) == 0
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
    capsys.readouterr()
    asked = ["--image", str(folder / names[0]), "--max-completion-length", "6", "--block-length", "3"]
    assert main(["sample", policy, "w5 w6", "--num", "2", *asked, *small]) == 0
    assert capsys.readouterr().out.count("> w5 w6\n") == 2
    two = ["--image", str(folder / names[0]), *asked]
    assert main(["sample", policy, "w5 w6", *two, *small]) == 2
    assert "2 --image for 1 prompts" in capsys.readouterr().err
    assert main(["sample", policy, "w5", "--image", str(tmp_path / "none.png"), *asked[2:], *small]) == 2
    assert "no file" in capsys.readouterr().err


def test_the_readme_names_every_recipe_and_only_real_keys():
    text = (ROOT / "recipes" / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+\.yaml)` \|", text, re.MULTILINE)) == {file.name for file in EVERY}
    section = text.partition("### Keys for pictures")[2].partition("\n#")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row[0])}
    assert len(rows) >= 15 and keys <= set(CONFIG_KEYS)
    assert keys - set(TASK_KEYS) == {"image_tokenizer", "trim_padding", "num_generations", "num_iterations"}
    for row in rows:
        for key in set(re.findall(r"`(\w+)`", row[0])) & TASK_KEYS.keys():
            assert all(f"`{choice}`" in row[1] for choice in TASK_KEYS[key].choices), key

"""Every shipped recipe with its model, data and sizes replaced by tiny ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from unigrpo.runs.packaged import command
from unigrpo.runs.recipe import Recipe, load_recipe

from . import ROOT
from .tiny import prompts


EVERY = sorted((ROOT / "recipes").glob("*.yaml"))
RECIPES = [file for file in EVERY if command(file.stem) == "train"]
SFT_RECIPES = [file for file in EVERY if command(file.stem) == "sft"]
"""By the command that they are for."""


SMALL = [
    "model.dtype=float32",
    "per_device_train_batch_size=8",
    "gradient_accumulation_steps=1",
    "num_generations=4",
    "max_completion_length=12",
    "steps=4",
    "block_length=6",
    "max_steps=2",
    "logging_steps=1",
    "save_strategy=no",
    "use_cpu=true",
    "disable_tqdm=true",
]


SIZES = {
    "image_size": 32,
    "max_completion_length": 12,
    "steps": 4,
    "eval_denoising_steps": 3,
    "block_length": 6,
    "max_prompt_length": 80,
}
"""What is made small wherever a recipe sets it, in a task's overrides too."""


def write_gsm8k(path: Path, rows: int) -> None:
    """Rows in the exact schema of openai/gsm8k: question, answer with the worked solution and '#### integer'."""
    records = [
        {"question": row["prompt"], "answer": f"w1 <<1+{i}={i + 1}>> w2\n#### {1000 + i:,}"}
        for i, row in enumerate(prompts(rows))
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def picture(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(values)


def write_parquet(path: Path, columns: dict[str, list]) -> None:
    """A file as the hub holds it: pictures are bytes under an Image feature."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    images = [picture(seed) for seed in range(len(next(iter(columns.values()))))]
    Dataset.from_dict({"image": images, **columns}).cast_column("image", ImageFeature()).to_parquet(path)


def write_geoqa(path: Path, rows: int) -> None:
    """The schema of leonardPKU/GEOQA_R1V_Train_8K: image, problem, solution in answer tags."""
    solutions = ["145°", "8", "2.5", "4"]
    columns = {"problem": [row["prompt"] for row in prompts(rows)]}
    columns["solution"] = [f"<answer> {solutions[i % 4]} </answer>" for i in range(rows)]
    write_parquet(path, columns)


def write_clevr(path: Path, rows: int) -> None:
    """The schema of leonardPKU/clevr_cogen_a_train: image, problem, solution in answer tags."""
    problems = [row["prompt"] for row in prompts(rows)]
    write_parquet(path, {"problem": problems, "solution": [f"<answer> {i + 3} </answer>" for i in range(rows)]})


def write_flickr(path: Path, rows: int) -> None:
    """The schema of lmms-lab/flickr30k: image, five captions, ids and a file name."""
    names = [str(1000 + i) for i in range(rows)]
    columns = {"caption": [[f"caption {i} of {name}" for i in range(5)] for name in names]}
    columns |= {"sentids": [[name] * 5 for name in names], "img_id": names}
    write_parquet(path, {**columns, "filename": [f"{name}.jpg" for name in names]})


def write_edits(path: Path, rows: int) -> None:
    """The schema of timbrooks/instructpix2pix-clip-filtered: a picture before and after, an instruction, captions of both."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    columns: dict[str, list] = {
        "original_image": [picture(seed) for seed in range(rows)],
        "edited_image": [picture(seed + rows) for seed in range(rows)],
        "edit_prompt": [row["prompt"] for row in prompts(rows)],
        "original_prompt": [f"w{seed} w2" for seed in range(rows)],
        "edited_prompt": [f"w{seed} w3" for seed in range(rows)],
    }
    made = Dataset.from_dict(columns)
    for name in ("original_image", "edited_image"):
        made = made.cast_column(name, ImageFeature())
    made.to_parquet(path)


def write_mixed_cot(folder: Path, rows: int) -> None:
    """Those of the Mixed-CoT recipes."""
    (folder / "mixed_cot").mkdir()
    for end in ("", "_heldout"):
        texts = [
            {"prompt": row["prompt"], "completion": f"<think>w1</think>w{i}"} for i, row in enumerate(prompts(rows))
        ]
        path = folder / "mixed_cot" / f"text{end}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in texts))
        columns = {name: [row[name] for row in texts] for name in ("prompt", "completion")}
        write_parquet(folder / "mixed_cot" / f"questions{end}.parquet", columns)
        write_parquet(folder / "mixed_cot" / f"pictures{end}.parquet", {"prompt": columns["prompt"]})


def write_think_draw(folder: Path, rows: int) -> None:
    """Those of think-then-draw."""
    (folder / "think_draw").mkdir()
    asked = [row["prompt"] for row in prompts(rows)]
    columns = {"prompt": asked, "completion": [f"<think>w{i}</think>" for i in range(rows)]}
    for end in ("", "_heldout"):
        write_parquet(folder / "think_draw" / f"rows{end}.parquet", columns)


def write_given_answers(folder: Path, rows: int) -> None:
    """The files that the recipes of ``unigrpo sft`` ask their user for."""
    write_mixed_cot(folder, rows)
    write_think_draw(folder, rows)


FIXTURES = {
    "openai/gsm8k": (write_gsm8k, "jsonl"),
    "leonardPKU/GEOQA_R1V_Train_8K": (write_geoqa, "parquet"),
    "leonardPKU/clevr_cogen_a_train": (write_clevr, "parquet"),
    "lmms-lab/flickr30k": (write_flickr, "parquet"),
    "timbrooks/instructpix2pix-clip-filtered": (write_edits, "parquet"),
}


def replaced_data(recipe: Recipe, folder: Path, limits: dict[str, int]) -> list[str]:
    """Overrides that point the recipe's hub datasets to files in their schema, and limit all of them."""
    changes = []
    for section, limit in limits.items():
        for index, spec in enumerate(getattr(recipe, section)):
            changes.append(f"{section}.{index}.limit={limit}")
            if spec.path in FIXTURES:
                write, suffix = FIXTURES[spec.path]
                write(folder / f"{section}-{index}.{suffix}", 4)
                changes.append(f"{section}.{index}.path={folder / f'{section}-{index}.{suffix}'}")
                changes.append(f"{section}.{index}.split=train")  # The file has fewer rows than a part names.
    return changes


def replaced_models(recipe: Recipe, tiny: dict[str, Path]) -> list[str]:
    """Overrides that put tiny models into the recipe: the policy, unquantised, the image tokenizer, the scorers."""
    tasks = {spec.task for spec in recipe.datasets}
    if recipe.policy in tiny and tasks <= {"text"}:
        # A family of text alone; ids that a recipe names are those of the published vocabulary.
        changes = [f"model.path={tiny[recipe.policy]}"]
        changes += ["model_init_kwargs={mask_token_id: 149}"] if "model_init_kwargs" in recipe.config else []
        return [*changes, *(["chat_template_kwargs=null"] if "chat_template_kwargs" in recipe.config else [])]
    changes = [f"model.path={tiny.get(str(recipe.policy), tiny['policy'])}", f"image_tokenizer={tiny['tokenizer']}"]
    if recipe.model.load_in_4bit:
        # bitsandbytes may be missing, and where it is there tests of its own hold what it does.
        changes.append("model.load_in_4bit=false")
    for index, reward in enumerate(recipe.rewards):
        if reward.name == "clip_score":
            changes.append(f"rewards.{index}.args.model={tiny['clip']}")
        if reward.name == "image_reward":
            options = {"model": tiny["image_reward"], "tokenizer": tiny["image_reward"] / "bert", "vision_heads": 3}
            changes += [f"rewards.{index}.args.{key}={value}" for key, value in options.items()]
    return changes


def replaced_sizes(recipe: Recipe) -> list[str]:
    """Overrides that make small what the recipe, or a task in it, sets."""
    changes = [f"{key}={value}" for key, value in SIZES.items() if key in recipe.config]
    if recipe.config.get("sampler") == "block":
        changes += ["block_length=4", "steps=12"]  # Of the tiny models.
    for task, values in recipe.config.get("task_overrides", {}).items():
        changes += [f"task_overrides.{task}.{key}={value}" for key, value in SIZES.items() if key in values]
    if recipe.config.get("r2i_decoding") == "parallel":
        changes += ["task_overrides.picture.steps=3"]  # Of four of the thought.
    return changes


MINIMAL = """
model: {path: somewhere}
datasets: [{path: "builtin:arithmetic", limit: 4}]
rewards: [{name: think_format, weight: 0.5}]
output_dir: out
use_cpu: true
"""


def recipe(tmp_path, text=MINIMAL, *overrides):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return load_recipe(str(file), list(overrides))

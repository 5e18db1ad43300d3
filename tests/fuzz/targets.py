"""What is fuzzed: each target takes bytes and raises only what is no documented error.

Where a search starts is in ``seeds``.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from unigrpo.data.pictures import load_image
from unigrpo.errors import RecipeError
from unigrpo.models.checkpoint_files import read_weights
from unigrpo.rewards._answers import gold_answer, predicted_answer
from unigrpo.rewards._numbers import read_number
from unigrpo.rewards._said import said_answer
from unigrpo.rewards.answers import answer_correctness
from unigrpo.rewards.format import think_format
from unigrpo.rewards.puzzles import countdown, sudoku
from unigrpo.runs.accuracy import answer_match, integer_match
from unigrpo.runs.reach import code_of
from unigrpo.runs.recipe import Recipe, load_recipe, parse_recipe
from unigrpo.runs.recipe_file import parse_yaml


ROOT = Path(__file__).parents[2]
SCRATCH = Path(tempfile.mkdtemp(prefix="unigrpo-fuzz-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
LONGEST_MESSAGE = 6_000
"""Characters of an error; a list of all valid keys is the longest that is meant."""


def _short(error: BaseException) -> None:
    assert len(str(error)) <= LONGEST_MESSAGE, f"a message of {len(str(error))} characters"


def recipe(data: bytes) -> None:
    """A recipe file, its overrides and the list of its code: a ``Recipe`` or a ``RecipeError``."""
    file = SCRATCH / "recipe.yaml"
    head, _, tail = data.partition(b"\xff\xff")
    file.write_bytes(head)
    overrides = tail.decode("utf-8", errors="replace").split("\n") if tail else []
    try:
        found = load_recipe(str(file), overrides)
        assert isinstance(found, Recipe)
        code_of(found)
    except RecipeError as error:
        _short(error)
    with contextlib.suppress(RecipeError):
        whole = parse_yaml(head.decode("utf-8", errors="surrogateescape"), "text")
        if isinstance(whole, dict):
            parse_recipe({**{"model": {"path": "a"}, "datasets": [], "rewards": [{"name": "b"}]}, **whole}, "text")


def answers(data: bytes) -> None:
    """Everything that reads an answer: scores in [0, 1] or None, whatever the text is."""
    text = data.decode("utf-8", errors="surrogateescape" if len(data) % 2 else "replace")
    first, _, second = text.partition("\x00")
    for one in (text, first, second):
        for read in (predicted_answer, gold_answer, said_answer, read_number):
            read(one)
    rows = {"prompts": ["p"], "completions": [first]}
    scores = [
        *answer_correctness(**rows, solution=[second]),
        *answer_correctness(prompts=["p"], completions=[second], solution=[text]),
        *think_format(**rows),
        *countdown(**rows, numbers=[[3, 4, 2]], target=[14]),
        *sudoku(**rows, puzzle=["1..." * 4], solution=["1234" * 4]),
    ]
    assert all(score is None or 0.0 <= score <= 1.0 for score in scores), scores
    integer_match(first, second)
    answer_match(first, second)


def image(data: bytes) -> None:
    """A picture's bytes: an RGB image or a ValueError that names the row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = load_image(data, "rows[0]")
        except ValueError as error:
            assert str(error).startswith("rows[0]: "), error
            _short(error)
        else:
            assert found.mode == "RGB" and min(found.size) >= 8


def checkpoint(data: bytes) -> None:
    """A folder's files, named by the first byte: weights, configurations, tokenizers and adapters."""
    from unigrpo import load_policy
    from unigrpo.data.image_codes import load_tokenizer
    from unigrpo.training.checkpoints.window_file import load_window

    kind = KINDS[(data[:1] or b"\0")[0] % len(KINDS)]
    body = data[1:]
    try:
        if kind in FOLDERS:
            owner, name = FOLDERS[kind]
            folder = folder_of(owner)
            path = folder / name
            kept = path.read_bytes()
            path.write_bytes(body)
            try:
                (load_tokenizer if owner == "tokenizer" else load_policy)(str(folder))
            finally:
                path.write_bytes(kept)
        else:
            path = SCRATCH / {"window": "w.safetensors", "weights": "x.safetensors", "pickle": "x.pt"}[kind]
            path.write_bytes(body)
            (load_window if kind == "window" else read_weights)(path)
    except (ValueError, OSError) as error:
        assert not isinstance(error, UnicodeEncodeError), error


FOLDERS = {
    "config.json": ("policy", "config.json"),
    "model.safetensors": ("policy", "model.safetensors"),
    "tokenizer.json": ("policy", "tokenizer.json"),
    "tokenizer_config.json": ("policy", "tokenizer_config.json"),
    "processor_config.json": ("policy", "processor_config.json"),
    "image config": ("tokenizer", "config.json"),
    "image weights": ("tokenizer", "model.safetensors"),
    "adapter_config.json": ("adapter", "adapter_config.json"),
    "adapter_model.safetensors": ("adapter", "adapter_model.safetensors"),
}


KINDS = (*FOLDERS, "window", "weights", "pickle")
"""What the first byte of a checkpoint case chooses from."""


def folder_of(kind: str) -> Path:
    """A small checkpoint to put a file into, made once."""
    folder = SCRATCH / kind
    if not folder.exists():
        from peft import LoraConfig, get_peft_model

        from ..support import hostile

        if kind == "policy":
            hostile.policy_folder(folder)
        elif kind == "tokenizer":
            hostile.tokenizer_folder(folder)
        else:
            model = hostile.tiny_model()
            get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
            hostile.edit_json(folder / "adapter_config.json", base_model_name_or_path=str(folder_of("policy")))
    return folder


TARGETS: dict[str, Callable[[bytes], None]] = {
    "recipe": recipe,
    "answers": answers,
    "image": image,
    "checkpoint": checkpoint,
}


def quiet() -> None:
    """No progress bars and no warnings of what is meant to be broken."""
    import logging

    from transformers.utils import logging as own

    own.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(1_000)

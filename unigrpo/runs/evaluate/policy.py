"""The policy that is evaluated: from a model's path or a recipe, with what the command line says of sampling."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...config.arguments import UniGRPOConfig
from ...config.build import build_algorithms, held_out_sampler
from ...config.checks import eval_sampler
from ...errors import RecipeError
from ...models.adapter_files import ADAPTER_FILE
from ...models.builtin import BUILTIN, model_path
from ...models.loading import load_config
from ...models.opening import finding_base, lineage
from ...parts import keys_of
from ...rollout.pipeline import Pipeline
from ...training.evaluation import eval_pipeline
from ...training.setup import load_codec
from ...types import is_picture, spans_of
from .. import packaged
from ..build import build_config
from ..recipe import CONFIG_KEYS, ModelSpec, Recipe, RewardSpec, known, parse_policy, section
from ..recipe_file import set_key
from ..train import held_out_pipeline


HELD_OUT = {"temperature": "eval_temperature", "steps": "eval_denoising_steps", "sampler": "eval_sampler"}
"""Keys of sampling, and what they are called where held-out rows are answered; a recipe's own are its rollouts'."""

SHARED = ("seed", "use_cpu", "per_device_eval_batch_size", "image_size", "image_transform", "model_init_kwargs")
"""Keys of a recipe of ``unigrpo sft`` that hold for its answers too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is evaluated: a recipe of the model and how it answers, the path that is loaded, and the recipe's name if there was one."""

    recipe: Recipe
    args: UniGRPOConfig
    path: str
    recipe_name: str | None

    def settings(self, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What decides how answers to ``tasks`` are sampled, by canvas."""
        spans = dict.fromkeys(span for task in tasks for span in spans_of(task))
        return {span: self._of_span(span) for span in spans} | self._pictures(tasks)

    def _of_span(self, span: str) -> dict[str, Any]:
        own, sampler = self.args.for_task(span), held_out_sampler(self.args.for_task(span))
        keys = sorted(keys_of(type(sampler)))
        prompts = {"max_prompt_length": own.max_prompt_length, "prompt_truncation": own.prompt_truncation}
        found = prompts | {"sampler": eval_sampler(own).name} | {name: getattr(sampler, name) for name in keys}
        return found if is_picture(span) else {"max_completion_length": own.max_completion_length, **found}

    def _pictures(self, tasks: Sequence[str]) -> dict[str, Any]:
        seen = [span for task in tasks if task != "text" for span in spans_of(task)]
        if not seen:
            return {}
        usual = (getattr(self.config(), "sampling_defaults", None) or {}).get("image_size", 512)
        own = self.args.for_task(seen[-1])
        return {"pictures": {"image_size": own.image_size or usual, "image_transform": own.image_transform}}

    def config(self) -> Any:
        """The configuration of the model, without its weights."""
        trusted = bool((self.args.model_init_kwargs or {}).get("trust_remote_code"))
        *adapters, base = lineage(self.path)
        with finding_base(adapters):
            return load_config(base, trust_remote_code=trusted)

    def identity(self) -> dict[str, Any]:
        """Which weights these are."""
        spec = self.recipe.model
        found = {"path": self.path, "weights": weights_digest(self.path), "dtype": spec.dtype}
        more = {
            "think_prompt": spec.think_prompt,
            "from_scratch": spec.from_scratch or None,
            "policy": self.recipe.policy,
        }
        more |= {"chat_template_kwargs": self.args.chat_template_kwargs, "attn_mask_mode": self.args.attn_mask_mode}
        quantised = {"load_in_8bit": spec.load_in_8bit or None, "load_in_4bit": spec.load_in_4bit or None}
        return found | {key: value for key, value in {**more, **quantised}.items() if value is not None}


def open_source(word: str, overrides: list[str], *, model: str | None = None, adapter: str | None = None) -> Source:
    """What ``word`` says to evaluate: a recipe, or a model.

    Args:
        overrides: ``key=value`` words; those of sampling are the answers'.
        model: another path than the recipe's.
        adapter: the folder or id of an adapter on the model.

    Raises:
        ValueError: neither a recipe nor a model, an unknown key, or an adapter on another model.
    """
    recipe = recipe_of(word)
    data = _mapping(word if recipe is None else recipe.model.path, recipe)
    # Without a GPU the answers are given on the CPU, and processes that share them have to know it.
    data.setdefault("use_cpu", not torch.cuda.is_available())
    for override in overrides:
        set_key(data, held_out_key(override))
    source = word if recipe is None else recipe.source
    for key in data:
        known(key, ("model", "policy", *CONFIG_KEYS), source)
    answering = Recipe(
        source=source,
        model=section(ModelSpec, data.pop("model"), f"{source}: model"),
        policy=parse_policy(data.pop("policy", None), source),
        datasets=[],
        rewards=[RewardSpec(name="unigrpo.runs.sft_held_out:no_reward")],
        config=data,
        folder=Path() if recipe is None else recipe.folder,
    )
    path = _loaded(answering.model.path, model, adapter)
    args = build_config(answering)
    found = Source(recipe=answering, args=args, path=path, recipe_name=None if recipe is None else source)
    args.take_lengths(getattr(found.config(), "sampling_defaults", None))
    return found


def recipe_of(word: str) -> Recipe | None:
    """The recipe that ``word`` names; None where it is a model.

    Raises:
        RecipeError: it can be neither, or the recipe cannot be read.
    """
    from ..sft import load_any_recipe

    folder = Path(model_path(word)) if not word.startswith(BUILTIN) else None
    if folder is None or any(os.path.isfile(folder / name) for name in ("config.json", ADAPTER_FILE)):
        return None
    if Path(word).suffix in (".yaml", ".yml") or os.path.isfile(word) or word in packaged.names():
        return load_any_recipe(word, [])
    if os.path.isfile(f"{word}.yaml"):
        return load_any_recipe(word, [])
    if "/" not in word and not os.path.exists(folder):
        try:
            return load_any_recipe(word, [])
        except RecipeError as error:
            raise RecipeError(
                f"{error}; nor is it a model: a folder with config.json, OWNER/NAME of the hub, builtin:NAME"
            ) from error
    return None


def _mapping(path: str, recipe: Recipe | None) -> dict[str, Any]:
    """The keys that say what answers and how."""
    if recipe is None:
        return {"model": {"path": path}, "seed": 0}
    if recipe.kind == "train":
        config = dict(recipe.config)
    else:
        config = {key: recipe.config[key] for key in SHARED if key in recipe.config} | dict(recipe.sampling or {})
        config["eval_temperature"] = config.pop("temperature", 0.0)
    policy = {} if recipe.policy is None else {"policy": recipe.policy}
    return {"model": asdict(recipe.model), **policy, **config}


def held_out_key(override: str) -> str:
    """``key=value`` with the name that the key has where held-out rows are answered."""
    key, equals, value = override.partition("=")
    *parents, last = key.split(".")
    return ".".join([*parents, HELD_OUT.get(last, last)]) + equals + value


def _loaded(base: str, model: str | None, adapter: str | None) -> str:
    """The path that is loaded: the adapter's where there is one."""
    base = model or base
    if adapter is None:
        return base
    found = lineage(adapter)
    if len(found) == 1:
        raise ValueError(f"--adapter={adapter!r} is no adapter: it has no {ADAPTER_FILE}")
    wanted = lineage(base)[0]
    same = found[1] == wanted or (
        Path(found[1]).exists() and Path(wanted).exists() and Path(found[1]).samefile(wanted)
    )
    if not same:
        raise ValueError(
            f"--adapter={adapter!r} was trained on {found[1]!r}, not on {base!r}: evaluate that one, or the adapter's folder alone"
        )
    return adapter


MODEL_FILES = ("*.safetensors", "*.bin", "*config.json", "tokenizer*.json", "*.jinja")
"""Weights, and what decides how a prompt is read."""

PIECES, PIECE = 64, 2**16
"""Pieces of a file of weights that are read for its digest, and their bytes; a whole one of 16 GB takes a minute."""


def weights_digest(path: str) -> str:
    """Hexadecimal digest of the model at ``path`` and beneath it: of its files the sizes and evenly spaced pieces, of ids the commit."""
    digest = hashlib.blake2b(digest_size=16)
    for own in lineage(path):
        files = sorted(file for pattern in MODEL_FILES for file in Path(own).glob(pattern))
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as opened:
                for place in range(PIECES if size > PIECES * PIECE else 1):
                    opened.seek(place * (size - PIECE) // (PIECES - 1) if size > PIECES * PIECE else 0)
                    digest.update(opened.read(PIECE if size > PIECES * PIECE else size))
        if not files:
            digest.update(f"{own} {_commit(own)}".encode())
    return digest.hexdigest()


def _commit(path: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(path, "config.json")
    except ValueError:
        return None
    return Path(file).parent.name if isinstance(file, str) else None


def load_pipeline(source: Source, tasks: Sequence[str]) -> Pipeline:
    """What answers rows of ``tasks``, decoding exactly.

    Raises:
        ValueError: the policy cannot do one of them.
    """
    other = None if source.path == source.recipe.model.path else source.path
    pipe = held_out_pipeline(source.recipe, [{"task": "text"}], other)
    pipe.args.take_lengths(getattr(source.config(), "sampling_defaults", None))
    pipe = replace(pipe, algorithms=build_algorithms(pipe.args))
    pictured = [task for task in tasks if task != "text"]
    if not pictured:
        return eval_pipeline(pipe)
    codec = load_codec(pipe.args.image_tokenizer, pipe.policy, pipe.args.offload_image_tokenizer)
    if codec is None:
        verb = "draw" if is_picture(spans_of(pictured[0])[-1]) else "look at pictures"
        raise ValueError(
            f"{source.path} cannot {verb} (task {pictured[0]!r}): it names no image tokenizer; give one with image_tokenizer=PATH, or "
            "leave that task out"
        )
    return eval_pipeline(replace(pipe, codec=codec.to(pipe.model.device)))

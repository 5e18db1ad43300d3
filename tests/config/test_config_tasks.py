"""Settings of each task: defaults of images to make, overrides, guidance, and what saved arguments say."""

from __future__ import annotations

import dataclasses
import json

import pytest

from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.config.task import TASK_KEYS

from ..support.configs import config
from ..support.images import tiny_tokenizer


T2I = {"sampler": "emerge", "steps": 16, "guidance_scale": 3.5, "eval_temperature": 1.0, "kl_estimator": "exact"}
TEXT = {
    "sampler": "semi_autoregressive",
    "steps": 128,
    "guidance_scale": 0.0,
    "eval_temperature": 0.0,
    "kl_estimator": "k3",
}


def settings(args: UniGRPOConfig, task: str) -> dict:
    return {key: getattr(args.for_task(task), key) for key in T2I}


@pytest.mark.smoke
def test_images_to_make_have_defaults_of_their_own():
    """What is not set stays None and is filled in by task, so that a key set later still holds for every task."""
    args = config()
    assert args.task_overrides == {}
    assert settings(args, "t2i") == T2I
    assert settings(args, "text") == settings(args, "mmu") == TEXT
    assert all(getattr(args, key) is None for key in TEXT)
    args.guidance_scale = 1.0
    assert {args.for_task(task).guidance_scale for task in ("text", "mmu", "t2i")} == {1.0}
    changed = dataclasses.replace(config(), generation_batch_size=None, kl_estimator="k3")
    assert changed.for_task("t2i").kl_estimator == "k3"


GIVEN = {"sampler": "maskgit", "steps": 40, "guidance_scale": 1.0, "eval_temperature": 0.5, "kl_estimator": "k2"}


@pytest.mark.parametrize("key", T2I)
def test_a_flat_key_holds_for_every_task_and_an_override_for_its_own(key):
    value = GIVEN[key]
    flat = config(**{key: value})
    assert [getattr(flat.for_task(task), key) for task in ("text", "mmu", "t2i")] == [value] * 3
    assert settings(flat, "t2i") == {**T2I, key: value}
    own = config(task_overrides={"t2i": {key: value}})
    assert settings(own, "t2i") == {**T2I, key: value}
    assert settings(own, "text") == TEXT
    both = config(**{key: TEXT[key]}, task_overrides={"t2i": {key: value}})
    assert getattr(both.for_task("t2i"), key) == value
    assert getattr(both.for_task("text"), key) == TEXT[key]


def test_the_callers_overrides_are_left_alone():
    given = {"t2i": {"steps": 4}, "mmu": {"beta": 0.0}}
    assert config(task_overrides=given).task_overrides["mmu"] == {"beta": 0.0}
    assert given == {"t2i": {"steps": 4}, "mmu": {"beta": 0.0}}


def test_guidance_is_off_in_sampler_and_likelihood_together():
    expected = {"rollout": (3.5, None), "both": (3.5, 3.5), "none": (0.0, None)}
    for guidance, values in expected.items():
        own = config(guidance=guidance).for_task("t2i")
        assert (own.guidance_scale, own.likelihood_guidance) == values
        own = config(task_overrides={"t2i": {"guidance": guidance}})
        assert (own.for_task("t2i").guidance_scale, own.for_task("t2i").likelihood_guidance) == values
        assert own.for_task("text").likelihood_guidance is None
    own = config(guidance="none").for_task("t2i")
    assert own.choice("sampler").build(own.shared()).guidance_scale == 0.0
    assert config(guidance="both").for_task("text").likelihood_guidance is None


def test_an_image_tokenizer_is_named_not_copied():
    tokenizer = tiny_tokenizer()
    args = config(image_tokenizer=tokenizer)
    assert args.to_dict()["image_tokenizer"] == "MagvitV2"
    assert json.loads(args.to_json_string())["image_tokenizer"] == "MagvitV2"
    assert args.image_tokenizer is tokenizer
    assert config(image_tokenizer="some/path").to_dict()["image_tokenizer"] == "some/path"
    assert config().to_dict()["image_tokenizer"] is None
    tokenizer.config.name_or_path = "builtin:codes"
    assert args.to_dict()["image_tokenizer"] == "builtin:codes"


def test_saved_arguments_mean_the_same_when_they_are_read_again():
    args = config(task_overrides={"t2i": {"steps": 4}}, importance_sampling_level="sequence", image_size=[64, 96])
    saved = json.loads(args.to_json_string())
    keys = {key: value for key, value in saved.items() if key in UniGRPOConfig.__dataclass_fields__}
    again = config(**{key: keys[key] for key in (*TASK_KEYS, "task_overrides", "num_iterations")})
    assert all(again.for_task(task) == args.for_task(task) for task in ("text", "mmu", "t2i"))


def test_overrides_as_json_text():
    args = config(task_overrides='{"t2i": {"steps": 4}, "mmu": {"image_size": [32, 48]}}')
    assert settings(args, "t2i") == {**T2I, "steps": 4}
    assert args.for_task("mmu").image_size == [32, 48]
    assert settings(config(task_overrides=None), "t2i") == T2I


# ---- lengths of a checkpoint ----

USUAL = {"max_completion_length": 24, "steps": 12, "block_length": 8, "image_size": 64}


@pytest.mark.parametrize(
    ("given", "text", "mmu"),
    [
        ({}, (24, 12, 8), (24, 12, 8)),
        ({"steps": 128}, (256, 128, 32), (256, 128, 32)),
        ({"task_overrides": {"mmu": {"block_length": 16}}}, (24, 12, 8), (256, 128, 16)),
        ({"sampler": "left_to_right"}, (24, 12, 8), (24, 12, 8)),
    ],
)
def test_lengths_are_the_checkpoints_where_a_task_has_none(given, text, mmu):
    """All three or none, because they suit each other; pictures keep their own steps."""
    args = config(**given)
    pictures = args.for_task("t2i").steps
    args.take_lengths(USUAL)
    found = [
        tuple(getattr(args.for_task(task), name) for name in ("max_completion_length", "steps", "block_length"))
        for task in ("text", "mmu")
    ]
    assert found == [text, mmu]
    assert args.for_task("t2i").steps == pictures != 12
    again = config(
        **{key: getattr(args, key) for key in ("max_completion_length", "given_keys", "filled_keys")} | given
    )
    assert again.given() == config(**given).given()


def test_guidance_is_what_the_sampler_of_a_task_reads():
    """A likelihood under another law than that of its rollout would make every ratio wrong."""
    tasks = ("text", "t2i", "i2i")
    flat = config(guidance="both", guidance_scale=2.0, image_guidance_scale=4.0)
    assert [flat.for_task(own).likelihood_guidance for own in tasks] == [2.0, (2.0, 4.0), (2.0, 4.0)]
    away = config(guidance="both", guidance_scale=2.0, guidance_direction="away")
    assert [away.for_task(own).likelihood_guidance for own in tasks] == [-2.0, 2.0, 2.0]
    unguided = config(guidance="both", guidance_scale=2.0, task_overrides={"text": {"sampler": "entropy_bound"}})
    assert unguided.for_task("text").likelihood_guidance is None
    own = config(guidance="none", image_guidance_scale=4.0).for_task("i2i")
    assert own.rollout_guidance is None and own.choice("sampler").build(own.shared()).image_guidance_scale == 0.0

"""Checkpoints that say what cannot be: one sentence that names the field."""

from __future__ import annotations

import pytest

from unigrpo import load_policy

from ..support import hostile
from .test_untrusted_checkpoints import adapter_folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_token_id": "x"}, "mask_token_id='x' in config.json must be a number"),
        ({"rope_theta": "a"}, "rope_theta='a' in config.json must be a number"),
        ({"n_heads": True}, "n_heads=True in config.json must be a number"),
        ({"model_type": 7}, "model_type=7 is no family"),
    ],
)
def test_a_configuration_of_other_kinds_of_values_is_refused(tmp_path, settings, message):
    folder = hostile.policy_folder(tmp_path / "folder")
    hostile.edit_json(folder / "config.json", **settings)
    with pytest.raises(ValueError, match=message):
        load_policy(str(folder))


def test_text_that_is_no_json_is_named(tmp_path):
    folder = hostile.policy_folder(tmp_path / "folder")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json of .*folder' cannot be read: the files are damaged"):
        load_policy(str(folder))


@pytest.mark.parametrize("dtype", ["foo", "int8", "nn", 7])
def test_a_dtype_that_is_none_is_no_damaged_file(tmp_path, dtype):
    folder = str(hostile.policy_folder(tmp_path / "folder"))
    for options in ({}, {"from_scratch": True}):
        with pytest.raises(ValueError, match=rf"dtype={dtype!r} is none for weights: give auto"):
            load_policy(folder, dtype=dtype, **options)


def test_an_adapter_without_weights_is_said_to_have_none(tmp_path):
    folder = adapter_folder(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights: there must be adapter_model.safetensors beside"):
        load_policy(str(folder))

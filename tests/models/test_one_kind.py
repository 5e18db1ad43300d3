"""A folder of weights is one policy's."""

from __future__ import annotations

import json

import pytest

from unigrpo.models.checkpoint_files import check_one_kind, weights_in


pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("full", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_an_adapter_beside_a_model_that_is_not_its_base_is_an_error(tmp_path, full):
    for name in (full, "adapter_model.safetensors", "model.txt", "submodel.bin"):
        (tmp_path / name).write_text("")
    assert weights_in(tmp_path) == [full, "adapter_model.safetensors"]
    check_one_kind(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "org/other"}))
    with pytest.raises(
        ValueError, match=rf"{tmp_path}.*two policies.*{full}.*'org/other'.*adapter_config.json.*Move the files"
    ):
        check_one_kind(tmp_path)
    config.write_text(json.dumps({"base_model_name_or_path": f"{tmp_path}/."}))
    check_one_kind(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="two policies"):
        check_one_kind(tmp_path)
    (tmp_path / full).unlink()
    check_one_kind(tmp_path)

"""Checkpoints, adapters, tokenizers and datasets are data: nothing in their folders is unpickled or imported."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from unigrpo import load_policy
from unigrpo.data.image_codes import load_tokenizer
from unigrpo.errors import RecipeError
from unigrpo.models import MMaDAPolicy
from unigrpo.models.checkpoint_files import check_declared, read_weights, reading
from unigrpo.models.loading import load_config, load_module
from unigrpo.rewards import get_reward
from unigrpo.rollout.rewards import resolve_reward
from unigrpo.runs.dataset_spec import DatasetSpec, load_rows

from ..support import hostile
from ..support.tiny import tiny_model


def scored(name: str, folder: Path) -> None:
    options = {"tokenizer": str(Path(folder, "bert")), "vision_heads": 3} if name == "image_reward" else {}
    get_reward(name, model=str(folder), **options)(prompts=["a"], completions=[Image.new("RGB", (20, 20))])


LOADERS = {
    "policy": (hostile.policy_folder, "pytorch_model.bin", load_policy),
    "image tokenizer": (hostile.tokenizer_folder, "pytorch_model.bin", load_tokenizer),
    "reward model": (hostile.classifier_folder, "pytorch_model.bin", resolve_reward),
    "clip": (hostile.clip_folder, "pytorch_model.bin", partial(scored, "clip_score")),
    "imagereward": (hostile.image_reward_folder, "ImageReward.pt", partial(scored, "image_reward")),
}


@pytest.mark.parametrize("plain", [False, True], ids=["torch file", "bare pickle"])
@pytest.mark.parametrize("kind", LOADERS)
def test_pickled_weights_are_refused(tmp_path, mark, kind, plain):
    make, file, load = LOADERS[kind]
    folder = hostile.without_weights(make(tmp_path / "folder"))
    hostile.trapped(folder / file, mark, plain)
    with pytest.raises(ValueError, match=r"could run code|plain tensors"):
        load(str(folder))


def adapter_folder(folder: Path) -> Path:
    base = hostile.policy_folder(folder / "base")
    model = tiny_model()
    model.name_or_path = str(base)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    hostile.edit_json(folder / "adapter" / "adapter_config.json", base_model_name_or_path=str(base))
    return folder / "adapter"


@pytest.mark.smoke
@pytest.mark.parametrize("plain", [False, True], ids=["torch file", "bare pickle"])
def test_pickled_adapters_are_refused(tmp_path, mark, plain):
    folder = adapter_folder(tmp_path)
    assert load_policy(str(folder)).generate("w1", max_completion_length=4)
    hostile.trapped(hostile.without_weights(folder) / "adapter_model.bin", mark, plain)
    with pytest.raises(ValueError, match="plain tensors"):
        load_policy(str(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"megatron_config": {}, "megatron_core": "evil"}, "names code"),
        ({"r": 10**6}, "no side of its weights"),
        ({"r": 10**12}, "no rank"),
        ({"rank_pattern": {"q_proj": 10**6}}, "no side of its weights"),
        ({"base_model_name_or_path": 7}, "names no model"),
        ({"r": "many"}, "cannot be read"),
        ({"peft_type": "evil"}, "cannot be read|not a valid"),
    ],
)
def test_adapters_that_name_code_or_lie_are_refused(tmp_path, settings, message):
    folder = adapter_folder(tmp_path)
    hostile.edit_json(folder / "adapter_config.json", **settings)
    with pytest.raises(ValueError, match=message):
        load_policy(str(folder))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_resumed_checkpoint_is_not_unpickled(make_trainer, tmp_path, mark, name):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(**options).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    hostile.reseal(checkpoint, partial(hostile.trapped, checkpoint / name, mark))
    with pytest.raises(ValueError, match="plain tensors"):
        make_trainer(**options).train(resume_from_checkpoint=str(checkpoint))


def test_the_saved_arguments_of_a_checkpoint_are_not_unpickled(make_trainer, tmp_path, mark):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(**options).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    hostile.reseal(checkpoint, partial(hostile.trapped, checkpoint / "training_args.bin", mark))
    trainer = make_trainer(**options)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 2


CODE_LOADERS = {
    "policy": (hostile.policy_folder, load_policy),
    "config": (hostile.policy_folder, load_config),
    "image tokenizer": (hostile.tokenizer_folder, load_tokenizer),
    "reward model": (hostile.classifier_folder, resolve_reward),
    "clip": (hostile.clip_folder, partial(scored, "clip_score")),
}


@pytest.mark.parametrize("model_type", [None, "evil"], ids=["known type", "unknown type"])
@pytest.mark.parametrize("kind", CODE_LOADERS)
def test_code_in_a_folder_is_not_imported_and_nobody_is_asked(tmp_path, mark, monkeypatch, kind, model_type):
    asked = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "n")
    make, load = CODE_LOADERS[kind]
    folder = hostile.with_code(make(tmp_path / "folder"), mark, model_type)
    try:
        load(str(folder))
    except ValueError:
        pass
    else:
        # A class of the library's own was found for it.
        assert model_type is None or kind == "image tokenizer"
    assert not asked


def test_code_runs_where_the_user_says_so(tmp_path, mark):
    folder = hostile.with_code(hostile.classifier_folder(tmp_path / "folder"), mark, "evil")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_config(str(folder))
    assert not mark.exists()
    load_config(str(folder), trust_remote_code=True)
    assert mark.exists()
    shutil.rmtree(mark)


def test_weights_only_cannot_be_switched_off(tmp_path, mark):
    folder = hostile.without_weights(hostile.policy_folder(tmp_path / "folder"))
    hostile.trapped(folder / "pytorch_model.bin", mark)
    with pytest.raises(ValueError, match="weights_only=False"):
        load_policy(str(folder), weights_only=False)
    with pytest.raises(ValueError, match="weights_only=False"):
        MMaDAPolicy.load_model(str(folder), weights_only=False)


def test_a_dataset_with_a_script_is_not_run(tmp_path, mark):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    for path in (folder, folder / "rows.py"):
        with pytest.raises((RecipeError, FileNotFoundError)):
            load_rows(DatasetSpec(path=str(path)))
    (folder / "rows.jsonl").write_text('{"prompt": "w1"}\n')
    with pytest.raises(RecipeError, match="no longer supported"):
        load_rows(DatasetSpec(path=str(folder)))
    (folder / "rows.py").unlink()
    assert load_rows(DatasetSpec(path=str(folder)))[0] == {"prompt": "w1"}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (hostile.policy_folder, {"n_layers": 10**9}),
        (hostile.policy_folder, {"n_layers": 2000}),
        (hostile.policy_folder, {"mlp_hidden_size": 10**12}),
        (hostile.policy_folder, {"d_model": 10**400}),
        (hostile.policy_folder, {"d_model": 0, "n_heads": 0}),
        (hostile.policy_folder, {"d_model": "wide"}),
        (hostile.policy_folder, {"vocab_size": 10**11, "embedding_size": 10**11, "new_vocab_size": 10**11}),
        (hostile.tokenizer_folder, {"code_bits": 10**9}),
        (hostile.tokenizer_folder, {"channels": 10**9}),
        (hostile.tokenizer_folder, {"encoder_blocks": [10**9] * 5}),
        (hostile.classifier_folder, {"num_hidden_layers": 10**9}),
        (hostile.classifier_folder, {"hidden_size": 10**9}),
        (hostile.clip_folder, {"text_config": {"num_hidden_layers": 10**9}}),
        (hostile.clip_folder, {"vision_config": {"hidden_size": 10**9}}),
        (hostile.image_reward_folder, {"vocab_size": 10**12}),
        (hostile.image_reward_folder, {"num_hidden_layers": 10**9}),
    ],
)
@pytest.mark.timeout(30)
def test_a_configuration_that_asks_for_the_moon_is_refused_before_anything_is_allocated(tmp_path, make, settings):
    folder = make(tmp_path / "folder")
    file = folder / ("med_config.json" if make is hostile.image_reward_folder else "config.json")
    hostile.edit_json(file, **settings)
    (load,) = (load for own, _, load in LOADERS.values() if own is make)
    with pytest.raises(ValueError):
        load(str(folder))


def test_a_model_far_larger_than_its_files_is_refused(tmp_path):
    folder = hostile.policy_folder(tmp_path / "folder")
    config = load_config(str(folder))
    check_declared(config, type(tiny_model()), folder, "it")
    config.mlp_hidden_size = 10**9
    with pytest.raises(ValueError, match="do not belong together"):
        check_declared(config, type(tiny_model()), folder, "it")


def in_cache(cache: Path, folder: Path, place: str = "") -> str:
    """Files of a folder as the hub's cache keeps those of an id, which is returned; large weights are in parts."""
    snapshot = cache / "models--some--model" / "snapshots" / ("a" * 40)
    (snapshot / place).mkdir(parents=True)
    shutil.copytree(folder, snapshot / place, dirs_exist_ok=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    return "some/model"


def in_parts(folder: Path) -> None:
    """Weights as two files with an index."""
    weights = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{number}-of-00002.safetensors": dict(weights[number - 1 :: 2]) for number in (1, 2)}
    for name, part in parts.items():
        save_file(part, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


IDS = {
    "policy": (hostile.policy_folder, partial(load_module, type(tiny_model())), {"n_layers": 3000}),
    "image tokenizer": (hostile.tokenizer_folder, load_tokenizer, {"channels": 4096}),
    "reward model": (hostile.classifier_folder, resolve_reward, {"num_hidden_layers": 3000}),
    "clip": (hostile.clip_folder, partial(scored, "clip_score"), {"text_config": {"num_hidden_layers": 3000}}),
}


@pytest.mark.parametrize("parts", [False, True], ids=["whole", "in parts"])
@pytest.mark.parametrize("kind", IDS)
@pytest.mark.timeout(60)
def test_sizes_of_an_id_in_the_cache_are_compared_too(tmp_path, monkeypatch, kind, parts):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    make, load, settings = IDS[kind]
    folder = make(tmp_path / "folder")
    if parts:
        in_parts(folder)
    name = in_cache(tmp_path / "cache", folder)
    load(name)
    shutil.rmtree(tmp_path / "cache")
    hostile.edit_json(folder / "config.json", **settings)
    in_cache(tmp_path / "cache", folder)
    with pytest.raises(ValueError, match=r"layers, and the weights are of|do not belong together"):
        load(name)


def test_an_id_is_looked_for_with_the_options_of_its_loading(tmp_path):
    folder = hostile.policy_folder(tmp_path / "folder")
    hostile.edit_json(folder / "config.json", n_layers=3000)
    name = in_cache(tmp_path / "cache", folder, "inner")
    options = {"cache_dir": str(tmp_path / "cache"), "subfolder": "inner", "revision": "main"}
    with pytest.raises(ValueError, match="3000 layers"):
        load_module(type(tiny_model()), name, **options)
    with pytest.raises(OSError):
        load_module(type(tiny_model()), "no/such", **options)
    with pytest.raises(OSError):
        load_module(type(tiny_model()), name, cache_dir=str(tmp_path / "cache"))


def test_models_of_the_users_own_are_told_not_to_trust(tmp_path):
    class Model:
        @staticmethod
        def from_pretrained(path, **kwargs):
            return kwargs["trust_remote_code"]

    assert load_module(Model, str(tmp_path)) is False
    assert load_module(Model, str(tmp_path), trust_remote_code=True) is True


def test_the_size_check_moves_no_random_numbers(tmp_path):
    folder = str(hostile.policy_folder(tmp_path / "folder"))
    before = torch.get_rng_state()
    load_module(type(tiny_model()), folder)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistError("rank 1 is gone"),
        torch.distributed.DistBackendError("NCCL communicator was aborted"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("NCCL Error 2: unhandled system error"),
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
        RuntimeError("Found no NVIDIA driver on your system"),
        TypeError("Model.__init__() got an unexpected keyword argument 'x'"),
    ],
    ids=str,
)
def test_errors_of_the_machine_and_of_the_call_are_not_called_damaged_files(error):
    with pytest.raises(type(error)) as caught, reading("it"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [TypeError("'int' object is not iterable"), RuntimeError("shape '[2]' is invalid")])
def test_other_errors_are(error):
    with pytest.raises(ValueError, match="damaged"), reading("it"):
        raise error


def test_damaged_torch_files_are_refused(tmp_path):
    for number, data in enumerate(
        (b"", b"\x80", b"\x80\x02", b"PK\x03\x04", b"\x80\x02}q\x00.", b"not weights at all")
    ):
        file = tmp_path / f"{number}.pt"
        file.write_bytes(data)
        with pytest.raises(ValueError):
            read_weights(file)

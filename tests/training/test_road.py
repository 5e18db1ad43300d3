"""From fine-tuning to reinforcement learning and back: each trainer starts from what the other has saved, whole or as an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer, UniGRPOConfig, UniGRPOTrainer, load_policy
from unigrpo.errors import CheckpointError
from unigrpo.models.builtin import SHIPPED
from unigrpo.models.opening import lineage
from unigrpo.models.quantization import quantization_config
from unigrpo.runs.cli import main
from unigrpo.training.setup import load_trainable

from ..support.given_runs import SMALL, TEXT
from ..support.runs import history
from ..support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor, wide_model


IDS = torch.arange(24).remainder(150).reshape(2, 12)

ROADS = {
    "full": (None, None),
    "adapter continued": (LoraConfig(r=4), None),
    "adapter merged, a new one on it": (LoraConfig(r=4), LoraConfig(r=2)),
    "adapter on a fine-tuned model": (None, LoraConfig(r=2)),
}
"""The adapters of fine-tuning and of reinforcement learning."""


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def near(own: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(torch.allclose(own, other, atol=2e-5))


@pytest.fixture(scope="module", name="base")
def base_model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


def fine_tuning(model: str, out: Path, adapter: LoraConfig | None = None) -> MaskedDenoisingTrainer:
    args = MaskedDenoisingConfig(str(out), **{**SMALL, "max_steps": 2, "learning_rate": 1e-2})
    return MaskedDenoisingTrainer(model, args, TEXT, peft_config=adapter)


def reinforcing(model: str, out: Path, adapter: LoraConfig | None = None) -> UniGRPOTrainer:
    args = UniGRPOConfig(str(out), **{**TRAINING, "max_steps": 2})
    return UniGRPOTrainer(model, low_ids, args, prompts(16), peft_config=adapter)


def opened(path: str, *adapters: Path) -> torch.nn.Module:
    """As a user of PEFT alone opens adapters that lie on each other."""
    model = load_policy(path).model
    for number, folder in enumerate(adapters):
        model = PeftModel.from_pretrained(model.merge_and_unload() if number else model, folder)
    return model


@pytest.mark.smoke
@pytest.mark.parametrize("road", ROADS)
def test_each_trainer_starts_from_what_the_other_saved_and_the_reference_is_the_fine_tuned_model(tmp_path, base, road):
    first, second = ROADS[road]
    sft, rl, again = (tmp_path / name for name in ("sft", "rl", "again"))
    tuned = fine_tuning(base, sft, first)
    tuned.train()
    tuned.save_model()
    start = logits(load_policy(str(sft)).model)
    assert not near(start, logits(load_policy(base).model))

    trainer = reinforcing(str(sft), rl, second)
    assert near(logits(trainer.model), start)
    trainer.train()
    assert history(trainer)[1][4] == pytest.approx(0, abs=1e-6), "the KL before the first step"
    with trainer._reference() as reference:
        assert near(logits(reference), start)
    trained = logits(trainer.model)
    assert not near(trained, start)
    trainer.save_model()

    assert near(logits(load_policy(str(rl)).model), trained)
    if second or first:
        on = [sft] if first and second else []
        assert near(logits(opened(str(sft) if second and not first else base, *on, rl)), trained)
        named = json.loads((rl / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == (str(sft) if second else base)
        assert main(["merge", str(rl), str(tmp_path / "whole")]) == 0
        assert near(logits(load_policy(str(tmp_path / "whole")).model), trained)

    last = fine_tuning(str(rl), again)
    assert near(logits(last.model), trained)
    last.train()
    last.save_model()
    assert near(logits(load_policy(str(again)).model), logits(last.model)) and not near(logits(last.model), trained)


def test_an_adapter_opens_on_the_weights_that_it_was_trained_on_and_on_no_others(tmp_path, base):
    """An adapter on an adapter whose folder is written again; and one that goes on with it."""
    below, above, further = (tmp_path / name for name in ("below", "above", "further"))
    fine_tuning(base, below, LoraConfig(r=4)).save_model()
    reinforcing(str(below), above, LoraConfig(r=2)).save_model()
    reinforcing(str(above), further).save_model()
    weights = below / "adapter_model.safetensors"
    kept = weights.read_bytes()
    save_file({name: value + 0.5 for name, value in load_file(weights).items()}, weights)
    for folder in (above, further):
        with pytest.raises(
            CheckpointError, match=rf"{folder}' was trained on the adapter in '{below}', whose weights are others now"
        ):
            load_policy(str(folder))
    with pytest.raises(CheckpointError, match=r"delete base_adapter\.json to open it on the new ones"):
        fine_tuning(str(above), tmp_path / "no")
    load_policy(str(below))
    (above / "base_adapter.json").unlink()
    load_policy(str(above))
    weights.write_bytes(kept)
    load_policy(str(further))


def test_a_recipe_starts_from_a_fine_tuned_adapter_by_its_folder(tmp_path, capsys):
    """By the commands, on a shipped model, whose name the adapter keeps; then its checks and its measurement."""
    common = "model: {path: %s, dtype: float32}\nuse_cpu: true\ndisable_tqdm: true\nmax_steps: 1\n"
    data = "datasets: [{path: 'builtin:arithmetic', limit: 8}]\n"
    sft, rl = tmp_path / "sft.yaml", tmp_path / "rl.yaml"
    runs = tmp_path / "runs"
    sft.write_text(
        common % "builtin:arithmetic" + data + f"lora: {{r: 2}}\nmax_length: 48\noutput_dir: {runs / 'sft'}\n"
    )
    settings = (
        "num_generations: 2\nper_device_train_batch_size: 4\nmax_completion_length: 8\nsteps: 4\nblock_length: 8\n"
    )
    held_out = "eval_datasets: [{path: 'builtin:arithmetic', split: test, limit: 2}]\n"
    own = f"rewards: [{{name: think_format}}]\nnum_iterations: 1\noutput_dir: {runs / 'rl'}\n"
    rl.write_text(common % (runs / "sft") + data + held_out + settings + own)
    assert main(["sft", str(sft)]) == 0
    assert main(["check", str(rl)]) == 0 and f"model {runs / 'sft'}: mmada" in capsys.readouterr().out
    assert main(["train", str(rl)]) == 0
    assert json.loads((runs / "rl" / "summary.json").read_text())["lora"] is True
    for folder in ("sft", "rl"):
        config = json.loads((runs / folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "builtin:arithmetic"
    assert main(["evaluate", str(rl), "--model", str(runs / "rl")]) == 0
    assert f"{runs / 'rl'}: " in capsys.readouterr().out


@pytest.mark.parametrize("given", ["name", "folder", "adapter on the folder"])
def test_an_adapter_of_a_shipped_model_names_it_and_no_folder_of_this_machine(tmp_path, given):
    path, config = str(SHIPPED / "arithmetic"), LoraConfig(r=2)
    model = {"name": "builtin:arithmetic", "folder": path}.get(given)
    if model is None:
        model, config = get_peft_model(load_policy(path).model, LoraConfig(r=2, target_modules="all-linear")), None
    args = MaskedDenoisingConfig(str(tmp_path), **{**SMALL, "max_length": 48, "image_size": None})
    trainer = MaskedDenoisingTrainer(model, args, [{"prompt": "1 + 1?", "completion": "2"}], peft_config=config)
    trainer.save_model()
    assert (
        json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "builtin:arithmetic"
    )
    assert not [own.name for own in tmp_path.glob("*.*") if str(SHIPPED).encode() in own.read_bytes()]


def test_adapters_that_name_each_other_are_an_error(tmp_path):
    for own, base in (("a", "b"), ("b", "a")):
        get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / own)
        file = tmp_path / own / "adapter_config.json"
        settings = {**json.loads(file.read_text()), "base_model_name_or_path": str(tmp_path / base)}
        file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"its bases name each other \(.*/a -> .*/b -> .*/a\): set base_model_name"):
        lineage(str(tmp_path / "a"))


def test_an_adapter_is_not_merged_into_rounded_weights(tmp_path):
    pytest.importorskip("bitsandbytes")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    wide_model().save_pretrained(base)
    tiny_processor().save_pretrained(base)
    config = LoraConfig(r=2, target_modules="all-linear", base_model_name_or_path=str(base))
    get_peft_model(load_policy(str(base)).model, config).save_pretrained(adapter)
    options = {"quantization_config": quantization_config(load_in_4bit=True)}
    args = UniGRPOConfig(str(tmp_path / "run"), **TRAINING)
    assert isinstance(load_trainable(str(adapter), None, options, args, adapters=False), PeftModel)
    with pytest.raises(
        ValueError, match=r"adapter' is an adapter on a quantised base.* leave out lora .*unigrpo merge"
    ):
        load_trainable(str(adapter), None, options, args, adapters=True)

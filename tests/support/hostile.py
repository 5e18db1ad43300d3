"""Hostile files: pickles that leave a mark when they are loaded, folders with code in them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import torch

from unigrpo.models.builtin import model_path

from .images import tiny_tokenizer
from .tiny import tiny_model, tiny_processor
from .tiny_scorers import save_clip, save_image_reward


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class Payload:
    """Ends the test run when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code from a checkpoint ran')",)


def trapped(path: Path, mark: Path, plain: bool = False) -> None:
    """A weights file with a trap in it, in torch's format or as a bare pickle."""
    weights = {"model.transformer.wte.weight": torch.zeros(2, 2), "trap": Trap(mark)}
    if plain:
        path.write_bytes(pickle.dumps(weights))
    else:
        torch.save(weights, path)


def policy_folder(folder: Path) -> Path:
    """The tiny policy with its processor."""
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def tokenizer_folder(folder: Path) -> Path:
    """A tiny image tokenizer."""
    tiny_tokenizer().save_pretrained(folder)
    return folder


def classifier_folder(folder: Path) -> Path:
    """A tiny sequence-classification model with a tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    shipped = Path(model_path("builtin:arithmetic"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped / name, folder / name)
    return folder


def without_weights(folder: Path) -> Path:
    """Takes the weights out of a folder."""
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pt")):
        file.unlink()
    return folder


def edit_json(file: Path, **values) -> None:
    """Sets keys of a JSON file; of a mapping in it, those that are given."""
    data = json.loads(file.read_text()) if file.exists() else {}
    for key, value in values.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) and data.get(key) else value
    sys.set_int_max_str_digits(0)
    file.write_text(json.dumps(data))
    sys.set_int_max_str_digits(4300)


def with_code(folder: Path, mark: Path, model_type: str | None = None) -> Path:
    """Puts a module into a folder that makes ``mark`` when it is imported, and points every file at it."""
    (folder / "evil.py").write_text(
        f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n"
        "from transformers import PreTrainedConfig, PreTrainedTokenizerFast, BertConfig, BertForSequenceClassification\n"
        "class Config(BertConfig):\n    model_type = 'evil'\n"
        "class Model(BertForSequenceClassification):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    auto["AutoModelForSequenceClassification"] = "evil.Model"
    kind = {} if model_type is None else {"model_type": model_type}
    edit_json(folder / "config.json", auto_map=auto, **kind)
    edit_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]},
        tokenizer_class="EvilTokenizer",
    )
    if (folder / "processor_config.json").exists():
        edit_json(folder / "processor_config.json", auto_map={"AutoProcessor": "evil.Tokenizer"})
    return folder


def clip_folder(folder: Path) -> Path:
    save_clip(folder)
    return folder


def image_reward_folder(folder: Path) -> Path:
    save_image_reward(folder)
    return folder


def reseal(checkpoint: Path, change) -> None:
    """Changes a checkpoint as somebody does who also renews its manifest."""
    from unigrpo.training.checkpoints.files import MANIFEST, seal

    (checkpoint / MANIFEST).unlink(missing_ok=True)
    change()
    seal(checkpoint)

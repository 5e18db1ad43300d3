"""What a run holds on a card: the arithmetic beside real models, and the recipes' headers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.utils import is_bitsandbytes_available

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.models import MMaDAForMaskedDiffusion, MMaDAPolicy
from unigrpo.models.adapters import add_adapter
from unigrpo.models.cache import KeyValueCache
from unigrpo.models.draw import Draw
from unigrpo.models.head import ROWS_PER_CHUNK, VocabularyHead
from unigrpo.models.mmada.configuration import MMaDAConfig
from unigrpo.runs.memory import COPIES, Memory, logits_of, memory_of
from unigrpo.runs.memory_report import memory_of_any
from unigrpo.runs.memory_sft import memory_of_sft
from unigrpo.runs.sft import build_sft_trainer, load_any_recipe, load_sft_recipe
from unigrpo.runs.shapes import Shape
from unigrpo.runs.train import build_trainer
from unigrpo.samplers.semi_autoregressive import SemiAutoregressive
from unigrpo.types import TokenSpace

from ..support.recipes import RECIPES, SFT_RECIPES, recipe
from ..support.tiny import GOLDENS, prompts, tiny_config_fields, tiny_processor


BIG = [file for file in RECIPES if "# Memory by arithmetic" in file.read_text()]
BIG_SFT = [file for file in SFT_RECIPES if "MMaDA-8B" in file.read_text()]
SHARED = ("base weights", "gradients", "AdamW")
"""Parts that FSDP2 and ZeRO-3 share out."""
LENGTH, ANSWER, ROWS = 96, 24, 6
"""Positions, of them those of the answer, and rows of what is really run here."""


def parts(memory: Memory) -> dict[str, int]:
    assert len({part.name for part in memory.parts}) == len(memory.parts)
    return {part.name: part.bytes for part in memory.parts}


# ---- the recipes' headers ----


FIRST = ("math_mmada_8b_24gb", "image_mmada_8b_lora", "sft_mixed_cot_mmada_8b")
"""One of a kind: text on 4 bits, pictures with rewards that are models, given answers with all weights shared out."""


@pytest.mark.parametrize(
    "file",
    [pytest.param(own, id=own.stem, marks=[] if own.stem in FIRST else pytest.mark.slow) for own in BIG + BIG_SFT],
)
def test_headers_say_what_the_arithmetic_says(file):
    """Every part and both sums within 10 %, and the whole fits the card that the third line names."""
    if "lumina" in file.stem:
        pytest.importorskip(
            "diffusers", reason="the tokenizer is counted by its modules: pip install 'unigrpo[lumina]'"
        )
    memory, text = memory_of_any(load_any_recipe(file)), file.read_text()
    header = text[text.index("# Memory by arithmetic") :].partition("\nmodel:")[0]
    said = {
        name.strip(): float(value) for name, value in re.findall(r"^#   (.{17}) .* (\d+\.\d)$", header, re.MULTILINE)
    }
    sums = dict(re.findall(r"^#   sum of the (\w+) +(\d+\.\d)$", header, re.MULTILINE))
    named = {name: value for name, value in said.items() if not name.startswith(("sum of", "on each"))}
    assert named.keys() == parts(memory).keys()
    for name, value in named.items():
        assert value == pytest.approx(parts(memory)[name] / 1e9, rel=0.1, abs=0.05), name
    assert sums.keys() == ({"rollout", "update"} if file in BIG else {"update", "evaluation"})
    for phase, value in sums.items():
        assert float(value) == pytest.approx(memory.phases[phase] / 1e9, rel=0.1)
    ((gpus, card),) = re.findall(r"(one|eight) (\d+) GB GPU", text.splitlines()[2])
    assert f"unigrpo check {file.stem} --memory {card}`" in header
    most = max(memory.phases.values())
    if gpus == "eight":
        # Between two synchronisations a process holds the whole gradient of what it has accumulated; weights are cast block by block.
        counted, (how,) = parts(memory), [part.how for part in memory.parts if part.name == "update"]
        rows, length, each_token = map(
            int, re.fullmatch(r"(\d+) x (\S+) tokens x (\d+) kB", how.replace(",", "")).groups()
        )
        most += rows * length * each_token * 1000 - counted["update"]
        most += (
            sum(counted[name] for name in SHARED) // 8 - sum(counted[name] for name in SHARED) + counted["gradients"]
        )
        (each,) = re.findall(r"^#   on each of eight +(\d+\.\d)$", header, re.MULTILINE)
        assert float(each) == pytest.approx(most / 1e9, rel=0.1)
    assert most < 0.85 * float(card) * 1e9


def test_there_are_recipes_for_every_card():
    cards = {file.stem: re.search(r"one (\d+) GB GPU", file.read_text())[1] for file in BIG}
    for kind in ("math", "image"):
        start = f"{kind}_mmada_8b_"
        own = {name.removeprefix(start): card for name, card in cards.items() if name.startswith(start)}
        assert own == {"24gb": "24", "48gb": "48", "lora": "80"}
    table = (Path(RECIPES[0]).parent / "README.md").read_text()
    for file in BIG + BIG_SFT:
        phases = ("rollout", "update") if file in BIG else ("evaluation", "update")
        (said,) = re.findall(rf"^\| .* GB \| `{file.stem}` \|.*\| (\S+) \| (\S+) \|$", table, re.MULTILINE)
        sums = dict(re.findall(r"^#   sum of the (\w+) +(\d+\.\d)$", file.read_text(), re.MULTILINE))
        assert sums == dict(zip(phases, said, strict=True)), file.stem


# ---- weights, exactly ----


TINY = """
model: {{path: {path}, dtype: {dtype}}}
datasets: [{{path: "builtin:arithmetic", limit: 4, task: text}}]
rewards: [{{name: think_format}}]
output_dir: {out}
use_cpu: true
disable_tqdm: true
max_completion_length: 24
max_prompt_length: 72
block_length: 6
steps: 8
num_generations: 6
per_device_train_batch_size: 6
"""


def tiny(path: Path, tmp_path: Path, *overrides: str, dtype: str = "bfloat16"):
    return recipe(tmp_path, TINY.format(path=path, dtype=dtype, out=tmp_path / "out"), *overrides)


def nbytes(tensors) -> int:
    return sum(own.numel() * own.element_size() for own in tensors)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_weights_and_optimizer_are_those_of_a_real_run(tiny_path, tmp_path, lora):
    own = tiny(tiny_path, tmp_path, *(["lora={r: 4}"] if lora else []), dtype="bfloat16" if lora else "float32")
    trainer = build_trainer(own)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    frozen = [weight for weight in trainer.model.parameters() if not weight.requires_grad]
    optimizer = trainer.create_optimizer()
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    counted = parts(memory_of(own))
    assert counted["base weights"] == nbytes(frozen if lora else trained) > 0
    assert counted["gradients"] == nbytes(weight.grad for weight in trained) > 0
    assert counted["AdamW"] == nbytes(moments) > 0
    assert counted.get("adapters", 0) == (nbytes(trained) if lora else 0)
    assert counted.get("reference", 0) == (0 if lora else nbytes(trainer._twin.parameters()))
    assert "reference" not in parts(memory_of(tiny(tiny_path, tmp_path, "beta=0.0")))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("keys", "bits"),
    [
        (["model.load_in_4bit=true"], 4 + 32 / 64),
        (["model.load_in_4bit=true", "model.use_bnb_nested_quant=true"], 4 + 8 / 64 + 32 / 64 / 256),
    ],
    ids=["4 bit", "nested"],
)
def test_four_bits_and_their_scales(tiny_path, tmp_path, keys, bits):
    """64 weights share a scale; embedding, norms and head stay."""
    whole = MMaDAForMaskedDiffusion.from_pretrained(tiny_path)
    linear = sum(own.weight.numel() for own in whole.modules() if type(own) is torch.nn.Linear)
    rest = sum(own.numel() for own in whole.parameters()) - linear
    assert rest == 2 * 272 * 64 + 7 * 64
    counted = parts(memory_of(tiny(tiny_path, tmp_path, *keys, "lora={r: 4}")))
    assert counted["base weights"] == int(linear * bits / 8 + rest * 2)
    assert counted["a layer unpacked"] == 64 * 96 * 2


@pytest.mark.skipif(not is_bitsandbytes_available(), reason='needs bitsandbytes: pip install -e ".[quantization]"')
@pytest.mark.parametrize("keys", ["load_in_4bit", "load_in_4bit use_bnb_nested_quant", "load_in_8bit"])
def test_quantised_weights_are_those_of_bitsandbytes(wide_path, tmp_path, keys):
    own = tiny(wide_path, tmp_path, "lora={r: 4}", *(f"model.{key}=true" for key in keys.split()))
    held = []
    for name, weight in build_trainer(own).model.named_parameters():
        state = getattr(weight, "quant_state", None)
        held += [] if "lora_" in name else [weight]
        held += [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
        held += [] if getattr(weight, "SCB", None) is None else [weight.SCB]
    assert parts(memory_of(own))["base weights"] == nbytes(held)


# ---- activations, beside what is really held ----


class Held(TorchDispatchMode):
    """The most bytes of storages that were alive at once, looked at after every operation; weights do not count."""

    def __init__(self, weights) -> None:
        super().__init__()
        self.peak, self._alive = 0, {}
        self._weights = {own.untyped_storage()._cdata for own in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._weights:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: own for key, own in self._alive.items() if not own[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


@pytest.fixture(scope="module")
def wide_path(tmp_path_factory) -> Path:
    """A model whose blocks weigh more than its head, as at 8B, and of more layers than are counted."""
    sizes = {"d_model": 128, "mlp_hidden_size": 384, "n_layers": 6}
    config = MMaDAConfig.from_pretrained(GOLDENS / "mmada_tiny", **tiny_config_fields(), **sizes)
    path = tmp_path_factory.mktemp("wide")
    MMaDAForMaskedDiffusion(config).save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


def wide(path: Path, lora: bool, checkpointing: bool):
    """The model as a run of ``TINY`` has it, its policy and a canvas of ``ROWS`` rows."""
    base = MMaDAForMaskedDiffusion.from_pretrained(path, dtype=torch.bfloat16 if lora else torch.float32)
    policy = MMaDAPolicy(base.config, tiny_processor())
    model = add_adapter(base, LoraConfig(r=4) if lora else None)
    if checkpointing:
        base.gradient_checkpointing_enable()
        if lora:
            model.enable_input_require_grads()
    canvas = policy.encode(prompts(ROWS, (LENGTH - ANSWER - 9,)), max_completion_length=ANSWER)
    return model, policy, canvas


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "kept"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_an_update_holds_what_is_counted(wide_path, tmp_path, lora, checkpointing):
    """Within 30 %; a gradient of all weights is a part of its own."""
    model, policy, canvas = wide(wide_path, lora, checkpointing)
    canvas, length = replace(canvas, ids=canvas.ids.masked_fill(canvas.fill_mask, 3)), canvas.ids.shape[1]
    model.train()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    with Held([*model.parameters(), *gradients]) as held:
        scores = score_tokens(model, policy, canvas, canvas.fill_mask, canvas.fill_mask)
        scores.logps.sum().backward()
    keys = [f"max_prompt_length={length - ANSWER}", f"gradient_checkpointing={checkpointing}"]
    own = tiny(wide_path, tmp_path, *keys, *(["lora={r: 4}"] if lora else []), dtype="bfloat16" if lora else "float32")
    counted = parts(memory_of(own))
    assert counted["update"] + counted["update head"] == pytest.approx(held.peak, rel=0.3)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_rollout_holds_what_is_counted(wide_path, tmp_path, lora):
    model, policy, canvas = wide(wide_path, lora, False)
    sampler = SemiAutoregressive(steps=4, block_length=6, temperature=1.0)
    generators = [torch.Generator().manual_seed(row) for row in range(ROWS)]
    model.eval()
    with Held(model.parameters()) as held:
        sampler(model, policy, canvas, generators=generators)
    keys = [f"max_prompt_length={canvas.ids.shape[1] - ANSWER}", *(["lora={r: 4}"] if lora else [])]
    counted = parts(memory_of(tiny(wide_path, tmp_path, *keys, dtype="bfloat16" if lora else "float32")))
    assert counted["rollout"] + counted["rollout head"] == pytest.approx(held.peak, rel=0.3)


@pytest.mark.parametrize("kind", COPIES)
def test_logits_of_a_chunk_are_held_so_often(monkeypatch, kind):
    """A fp32 head of many tokens and three chunks of rows: drawn from, scored, and scored beside a reference."""
    rows, tokens = 300, 4000
    monkeypatch.setattr("unigrpo.runs.memory.ROWS_PER_GPU_CHUNK", ROWS_PER_CHUNK)
    monkeypatch.setattr("unigrpo.models.draw.ROWS_IN_CACHE", ROWS_PER_CHUNK)
    head = VocabularyHead(16, tokens, bias=False).requires_grad_(False)
    space, targets = TokenSpace(start=0, stop=tokens), torch.zeros(rows, dtype=torch.int64)
    hidden = torch.randn(rows, 16, requires_grad=kind != "drawn")
    ref = torch.randn(rows, tokens).log_softmax(dim=1) if kind == "compared" else None
    draw = Draw(uniforms=torch.rand(rows, dtype=torch.float64)) if kind == "drawn" else None
    with Held([head.weight, hidden, targets, *([] if ref is None else [ref])]) as held:
        head(hidden, targets=None if draw else targets, token_space=space, ref_logprobs=ref, draw=draw)
    shape = Shape(settings=None, length=rows, answer=rows, width=tokens)
    counted, how = logits_of(head, rows, shape, kind, False)
    assert how == f"{ROWS_PER_CHUNK} rows x 4,000 x 4 bytes x {COPIES[kind]}"
    assert counted == ROWS_PER_CHUNK * tokens * 4 * COPIES[kind]
    assert 0.6 * counted < held.peak < 1.1 * counted


def test_keys_and_values_are_counted_exactly(wide_path, tmp_path):
    model, policy, canvas = wide(wide_path, True, False)
    cache = KeyValueCache()
    with torch.no_grad():
        model(**policy.inputs(canvas), select=canvas.fill_mask, cache=cache)
    kept = nbytes(tensor for own in cache._layers for tensor in (own.key, own.value))
    length = f"max_prompt_length={canvas.ids.shape[1] - ANSWER}"
    counted = parts(memory_of(tiny(wide_path, tmp_path, length, "kv_cache=dual", "lora={r: 4}")))
    assert counted["keys and values"] == pytest.approx(kept, rel=0.02)
    assert "keys and values" not in parts(memory_of(tiny(wide_path, tmp_path, length, "lora={r: 4}")))


# ---- given answers ----


GIVEN = """
model: {{path: {path}, dtype: {dtype}}}
datasets: [{{path: {rows}, task: text}}]
eval_datasets: [{{path: {rows}, task: text}}]
output_dir: {out}
use_cpu: true
disable_tqdm: true
max_length: {length}
per_device_train_batch_size: 6
per_device_eval_batch_size: 2
num_eval_draws: 2
mask_ratio_min: 0.9
"""


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_fine_tuning_holds_what_is_counted(wide_path, tmp_path, monkeypatch, lora):
    """Weights and optimizer to the byte; a step and an evaluation within 30 %."""
    monkeypatch.setattr("unigrpo.runs.memory.ROWS_PER_GPU_CHUNK", ROWS_PER_CHUNK)
    rows = [{**row, "completion": "w5 w6"} for row in prompts(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "out", "length": LENGTH}
    file = tmp_path / "given.yaml"
    file.write_text(GIVEN.format(path=wide_path, dtype="bfloat16" if lora else "float32", **values))
    own = load_sft_recipe(file, ["lora={r: 4}"] if lora else [])
    counted = parts(memory_of_sft(own))
    trainer = build_sft_trainer(own)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert counted["gradients"] == nbytes(trained) and counted["AdamW"] == 2 * nbytes(trained)
    assert counted["base weights"] == nbytes(trainer.model.parameters()) - (nbytes(trained) if lora else 0)
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    beside = [*trainer.model.parameters(), *(weight.grad for weight in trained)]
    with Held(beside) as held:
        trainer.training_step(trainer.model, [0])
    assert counted["update"] + counted["update head"] == pytest.approx(held.peak, rel=0.3)
    trainer.model_wrapped = trainer.model
    with Held(beside) as held:
        trainer.measure({"eval_dataset": trainer.eval_dataset["eval_dataset"].select(range(2))})
    assert counted["evaluation"] + counted["evaluation head"] == pytest.approx(held.peak, rel=0.3)

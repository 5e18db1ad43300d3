"""What we write opens elsewhere, and what people type works: Auto classes, dtypes, ``generate``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoProcessor, AutoTokenizer, BertConfig, BertForMaskedLM

from unigrpo.models import MaskedDiffusionMixin, MMaDAProcessor
from unigrpo.models.builtin import SHIPPED
from unigrpo.models.processing import name_for_transformers_4
from unigrpo.rollout.generate import load_policy

from ..support.tiny import tiny_llada, tiny_model, tiny_processor


IDS = torch.arange(20).view(2, 10)
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 10])
LABELS = IDS.masked_fill(IDS % 3 == 0, -100)


class TinyBert(MaskedDiffusionMixin, BertForMaskedLM):
    """A network of transformers under the forward contract."""


def tiny_bert() -> TinyBert:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return TinyBert(BertConfig(vocab_size=208, **sizes)).eval()


FAMILIES = {"mmada": tiny_model, "llada": tiny_llada}
NETWORKS = {**FAMILIES, "bert": tiny_bert}


@pytest.fixture(params=FAMILIES, name="model")
def model_of_a_family(request):
    return FAMILIES[request.param]()


@pytest.fixture(params=NETWORKS, name="network")
def any_network(request):
    return NETWORKS[request.param]()


@pytest.fixture
def folder(model, tmp_path):
    """A saved policy in fp16."""
    model.half().save_pretrained(tmp_path, max_shard_size="60KB")
    tiny_processor().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.smoke
@torch.no_grad()
def test_auto_classes_open_what_we_save(model, folder):
    for auto in (AutoModel, AutoModelForMaskedLM):
        opened = auto.from_pretrained(folder)
        assert type(opened) is type(model) and opened.dtype == torch.float16
        assert opened(IDS, attention_mask=MASK).logits.equal(model(IDS, attention_mask=MASK).logits)
    processor, own = AutoProcessor.from_pretrained(folder), tiny_processor()
    assert type(processor) is MMaDAProcessor
    chat = [{"role": "user", "content": "w1 w2"}]
    assert processor.encode_prompt(chat) == own.encode_prompt(chat)
    bare = AutoTokenizer.from_pretrained(folder)
    assert bare.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == own.chat_text(chat)
    assert bare.all_special_ids == own.tokenizer.all_special_ids
    for gone in ("processor_config.json", "chat_template.jinja"):
        (folder / gone).unlink()
    assert type(AutoProcessor.from_pretrained(folder)) is MMaDAProcessor, "as around a published tokenizer"


SHIPPED_TOKENIZERS = sorted(file.parent.name for file in SHIPPED.glob("*/tokenizer_config.json"))


@pytest.mark.parametrize("name", SHIPPED_TOKENIZERS)
def test_tokenizers_that_ship_are_written_as_saved_ones_are(name, tmp_path):
    """For transformers 4 too: a class that it has, and the chat template where it looks for it."""
    file = SHIPPED / name / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    shutil.copy(file, tmp_path)
    if (SHIPPED / name / "processor_config.json").exists():
        template = MMaDAProcessor.from_pretrained(SHIPPED / name).chat_template
        assert (SHIPPED / name / "chat_template.jinja").read_text() == settings["chat_template"] == template
    name_for_transformers_4(tmp_path)
    assert (tmp_path / file.name).read_text() == file.read_text()


ORDERS = {
    "ours first": "import unigrpo; light = 'transformers' not in sys.modules; from transformers import AutoProcessor",
    "theirs first": "from transformers import AutoProcessor; import unigrpo; light = True",
    "half made": "import unigrpo; light = True; from transformers import PreTrainedModel",
    "pipeline": "import unigrpo; light = True; from transformers import pipeline",
    "peft": "import unigrpo; light = True; import peft",
}


@pytest.mark.parametrize(
    "order", [o if o == "ours first" else pytest.param(o, marks=pytest.mark.slow) for o in ORDERS]
)
def test_importing_unigrpo_is_enough_and_stays_light(order, tmp_path):
    tiny_llada().config.save_pretrained(tmp_path)
    lines = f"""
import sys
{ORDERS[order]}
assert light
from transformers import AutoConfig, AutoModelForMaskedLM
config = AutoConfig.from_pretrained({str(tmp_path)!r})
print(type(AutoModelForMaskedLM.from_config(config)).__name__)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "LLaDAForMaskedDiffusion", done.stderr


@pytest.mark.parametrize(
    "stale", [{"dtype": "float32"}, {"dtype": "float32", "torch_dtype": "bfloat16"}, {"dtype": None}]
)
def test_the_weights_settle_their_dtype(folder, stale, tmp_path):
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    assert fields["dtype"] == fields["torch_dtype"] == "float16"
    config.write_text(json.dumps({**fields, **stale}))
    models = [AutoModel.from_pretrained(folder), load_policy(folder, device="cpu").model]
    models[0].save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert [own.dtype for own in models] == [torch.float16] * 2
    assert saved["dtype"] == saved["torch_dtype"] == "float16"
    for asked in ("bfloat16", torch.float32):
        assert AutoModel.from_pretrained(folder, dtype=asked).dtype == getattr(
            torch, str(asked).removeprefix("torch.")
        )


def test_the_dtype_of_most_numbers_counts_and_pickled_weights_say_theirs(tmp_path):
    model = tiny_llada().half()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.transformer.ln_f.weight"] = weights["model.transformer.ln_f.weight"].float()
    model.config.dtype = "float32"
    model.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    save_file({"ids": torch.zeros(9, dtype=torch.int64)}, tmp_path / "window.safetensors")
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.float32, "both keys say so"
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "torch_dtype": "bfloat16"}))
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.float16
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.float16


GIVEN = {"max_completion_length": 8, "steps": 4, "temperature": 1.0, "seed": 3}
PROMPTS = ["w1 w2", "w3 w4 w5"]


def test_a_loaded_module_answers_under_the_names_people_type(model):
    model.train()
    policy = load_policy(model, processing_class=tiny_processor())
    expected, short = policy.generate(PROMPTS, **GIVEN), {"max_new_tokens": 8}
    spoken = {**short, "num_inference_steps": 4, "do_sample": True, "seed": 3}
    assert policy(PROMPTS, **spoken) == expected
    assert model.generate(PROMPTS, processing_class=tiny_processor(), **spoken) == expected
    assert model.training, "the mode is put back"
    greedy = policy(PROMPTS, **short)
    assert policy(PROMPTS, **short, do_sample=False) == greedy != expected
    streams = (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    draws = [policy(PROMPTS, **short, do_sample=True, generator=own) for own in streams]
    assert draws[0] == draws[1] != draws[2]
    both = policy(PROMPTS, num_return_sequences=2, **GIVEN)
    assert len(both) == 4 and both[0] == expected[0] and both[0] != both[1]
    assert policy(PROMPTS, num_return_sequences=2, **short) == [own for own in greedy for _ in range(2)]


def test_ids_are_answered_with_ids(model):
    processor = tiny_processor()
    texts = [processor.chat_text(prompt) for prompt in PROMPTS]
    inputs = processor.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    prompt, generate = inputs["input_ids"], partial(model.generate, processing_class=processor)
    short = {"max_new_tokens": 8, "num_inference_steps": 4}
    ids = generate(**inputs, **short)
    assert ids[:, : prompt.shape[1]].equal(prompt) and ids.shape[1] == prompt.shape[1] + 8
    answers = processor.tokenizer.batch_decode(ids[:, prompt.shape[1] :], skip_special_tokens=True)
    assert answers == generate(PROMPTS, **short)
    assert generate(prompt[:1], max_new_tokens=8, num_return_sequences=3).shape[0] == 3
    with pytest.raises(ValueError, match="padding on the right"):
        generate(prompt, attention_mask=inputs["attention_mask"].flip(1))
    with pytest.raises(ValueError, match="either prompts or input_ids"):
        generate()


def test_an_adapters_model_answers_with_the_adapter(model):
    processor = tiny_processor()
    plain = load_policy(model, processing_class=processor)(PROMPTS, **GIVEN)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    moved = load_policy(adapted, processing_class=processor)(PROMPTS, **GIVEN)
    assert adapted.generate(PROMPTS, processing_class=processor, **GIVEN) == moved != plain
    with pytest.raises(ValueError, match="reads no files: leave out dtype"):
        load_policy(adapted, processing_class=processor, dtype="bfloat16")


def test_a_trainer_answers_as_its_policy_does(make_trainer):
    trainer = make_trainer(lora=True, max_steps=1)
    trainer.train()
    own = load_policy(trainer.model, processing_class=trainer.policy.processor)
    assert trainer.generate(PROMPTS, **GIVEN) == own(PROMPTS, **GIVEN)
    # What is not given is the run's.
    usual = {key: getattr(trainer.args, key) for key in ("max_completion_length", "steps", "block_length")}
    assert usual["max_completion_length"] < 256
    assert trainer.generate(PROMPTS, seed=3) == own(PROMPTS, seed=3, **usual)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_token": 4}, "no option 'max_new_token': did you mean 'max_new_tokens'"),
        ({"temperatur": 1.0}, "did you mean 'temperature'"),
        ({"guidence_scale": 1.0}, "did you mean 'guidance_scale'"),
        ({"max_length": 9}, "it would count the prompt"),
        ({"num_beams": 2}, "has no beams"),
        ({"xyz": 1}, "it has ['top_k', 'top_p', 'min_p', 'steps'"),
        ({"max_new_tokens": 4, "max_completion_length": 4}, "are one thing"),
        ({"do_sample": False, "temperature": 0.7}, "disagree"),
        ({"do_sample": True, "temperature": 0.0}, "disagree"),
        ({"generator": 7}, "no torch.Generator"),
        ({"generator": torch.Generator(), "seed": 1}, "give one of them"),
    ],
)
def test_an_option_that_is_not_there_is_one_sentence(options, said):
    with pytest.raises(ValueError) as caught:
        load_policy(tiny_model(), processing_class=tiny_processor())("w1", **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "cure"), [("attention_maks", "did you mean 'attention_mask'"), ("output_attentions", "keeps no")]
)
def test_no_network_swallows_an_argument(network, name, cure):
    with pytest.raises(TypeError, match=f"takes no '{name}': .*{cure}"):
        network(IDS, **{name: True})


@torch.no_grad()
def test_built_on_meta_and_filled_it_is_the_same_model(model):
    with torch.device("meta"):
        empty = type(model)(model.config)
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(model.state_dict())
    assert filled(IDS).logits.equal(model(IDS).logits)


@pytest.mark.slow
@torch.no_grad()
def test_a_model_with_a_mask_is_exported():
    model = tiny_llada()
    exported = torch.export.export(model, (IDS,), {"attention_mask": MASK}).module()
    for mask in (MASK, torch.ones_like(MASK)):
        torch.testing.assert_close(exported(IDS, attention_mask=mask).logits, model(IDS, attention_mask=mask).logits)

"""Random chat models of a few kilobytes, with and without sight, whose answers are digits."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)


CHAT = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 4096}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5, "tie_word_embeddings": False}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 16, "patch_size": 8, "initializer_factor": 20.0}


def byte_tokenizer():
    """One token a byte, so that every text is itself, and the special tokens of a chat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    more = ["<|im_start|>", "<image>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=more, chat_template=CHAT, **special
    )


def chat_model(tokenizer, seed):
    """A Qwen2 that reads text."""
    torch.manual_seed(seed)
    return digits_only(Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **TEXT)), tokenizer)


def seeing_model(tokenizer, seed):
    """A LLaVA that reads text and images of 16 x 16, and its processor."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=CHAT
    )
    processor.num_additional_image_tokens = 1
    return digits_only(LlavaForConditionalGeneration(config), tokenizer), processor


def digits_only(model, tokenizer):
    """The model made to say digits and spaces, and to stop behind a digit above 6."""
    said = tokenizer.convert_tokens_to_ids([*"0123456789", "Ġ"])
    silent = torch.ones(len(tokenizer), dtype=torch.bool)
    silent[said] = False
    model.lm_head.weight.data[silent] = 0
    ends = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["7", "8", "9"])]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, ends[0]
    return model.eval()


def said_directly(model, encoder, messages, longest):
    """What the model says to the messages, greedily, and whether it came to an end by itself.

    ``encoder`` is a tokenizer or a processor.
    """
    inputs = encoder.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=longest, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return encoder.decode(ids, skip_special_tokens=True), len(ids) < longest

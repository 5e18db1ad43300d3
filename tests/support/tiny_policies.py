"""Two more kinds of diffusion model, tiny: block-causal attention, and uniform noise in place of a mask id."""

from __future__ import annotations

import importlib.util

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from unigrpo.models import DiffusionPolicy, MaskedDiffusionMixin
from unigrpo.models.base import fit_prompt, left_pad
from unigrpo.types import Canvas, TokenSpace

from . import ROOT


EXAMPLE = ROOT / "examples" / "custom_policy.py"

BLOCK = 4
"""Positions of a block of the block-causal model."""

PROMPTS = ("say red", "please say please say blue", "say please black green", "please say white")
ROWS = [{"prompt": prompt} for prompt in PROMPTS]
"""Prompts of one block and of two, that fill their first block and do not."""


def load_example():
    spec = importlib.util.spec_from_file_location("custom_policy", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


# ---- block-causal: SDAR, LLaDA 2 ----


class BlockCausalBert(BertForMaskedLM):
    """A position sees its own block, both ways, and all earlier ones; blocks are counted in ``position_ids``."""

    def forward(self, input_ids, attention_mask, position_ids):
        block = position_ids // BLOCK
        seen = (block[:, None, :] <= block[:, :, None]) & attention_mask[:, None, :]
        # Padding sees itself: a row of attention without any key is not a number.
        seen = seen | torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
        return super().forward(input_ids, attention_mask=seen[:, None], position_ids=position_ids)


class BlockCausalPolicy(example.BertPolicy):
    """The example's canvas; positions are counted so that every answer begins a block, as after left padding to one."""

    def encode(self, rows, task="text", **lengths):
        canvas = super().encode(rows, task, **lengths)
        prompt = (canvas.attention_mask & ~canvas.fill_mask).sum(dim=1, keepdim=True)
        canvas.position_ids.add_(-prompt % BLOCK * canvas.attention_mask)
        return canvas


class BlockCausalModel(MaskedDiffusionMixin, BlockCausalBert):
    policy_class = BlockCausalPolicy


def block_causal():
    """Model, policy and rows; of its random weights, ones that write answers of several lengths."""
    torch.manual_seed(4)
    plain, tokenizer = example.build()
    model = BlockCausalModel(plain.config)
    model.load_state_dict(plain.state_dict())
    return model.eval(), BlockCausalPolicy(model.config, tokenizer), ROWS


# ---- uniform noise: UDM, URSA ----


WORDS = ["[PAD]", "[SEP]", "please", "say", "red", "green", "blue", "black", "white"]


class UniformNoisePolicy(DiffusionPolicy):
    """No mask id: what is not written yet is a random token, and the model is not told which tokens are.

    Every id but padding may be written, and a random token may be a [SEP].
    """

    processor_class = PreTrainedTokenizerFast
    mask_token_id = None

    def __init__(self, config, processor):
        self.config, self.processor = config, processor
        self.pad_token_id, self.stop_token_ids = processor.pad_token_id, (processor.sep_token_id,)

    def token_space(self, task):
        return TokenSpace(start=0, stop=self.config.vocab_size, exclude=(self.pad_token_id,))

    def encode(self, rows, task="text", *, max_completion_length, max_prompt_length=None, prompt_truncation="error"):
        limit = max_prompt_length or self.config.max_position_embeddings - max_completion_length
        prompts = [fit_prompt(self.processor.encode(r["prompt"]), limit, prompt_truncation, r["prompt"]) for r in rows]
        prompt_ids, read = left_pad(prompts, self.pad_token_id)
        answer = torch.full((len(rows), max_completion_length), self.pad_token_id)
        written = torch.ones_like(answer, dtype=torch.bool)
        real = torch.cat([read, written], dim=1)
        return Canvas(
            ids=torch.cat([prompt_ids, answer], dim=1),
            fill_mask=torch.cat([torch.zeros_like(read), written], dim=1),
            attention_mask=real,
            position_ids=(real.cumsum(1) - 1).clamp(min=0),
            task=task,
            token_space=self.token_space(task),
        )

    decode = example.BertPolicy.decode


class UniformNoiseModel(MaskedDiffusionMixin, BertForMaskedLM):
    policy_class = UniformNoisePolicy


def uniform_noise():
    """Model, policy and rows."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", sep_token="[SEP]")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, initializer_range=0.1, **sizes)
    model = UniformNoiseModel(config).eval()
    return model, UniformNoisePolicy(config, tokenizer), ROWS

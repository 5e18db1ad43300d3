"""Any Hugging Face masked LM as a diffusion policy, trained with UniGRPO: a tiny BERT learns to repeat a word.

Run: python examples/custom_policy.py    half a minute on a CPU; the reward goes from 0.0 to above 0.8.
"""

import tempfile

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.models import DiffusionPolicy, MaskedDiffusionMixin
from unigrpo.models.base import fit_prompt, left_pad
from unigrpo.types import Canvas, TokenSpace


WORDS = ["[PAD]", "[MASK]", "[SEP]", "please", "say", "red", "green", "blue", "black", "white"]


class BertPolicy(DiffusionPolicy):
    """Prompt on the left, answer on the right; every id after [MASK] may be written and [SEP] ends an answer."""

    processor_class = PreTrainedTokenizerFast

    def __init__(self, config, processor):
        self.config, self.processor = config, processor
        self.mask_token_id, self.pad_token_id = processor.mask_token_id, processor.pad_token_id
        self.stop_token_ids = (processor.sep_token_id,)

    def token_space(self, task):
        return TokenSpace(start=self.mask_token_id + 1, stop=self.config.vocab_size)

    def encode(self, rows, task="text", *, max_completion_length, max_prompt_length=None, prompt_truncation="error"):
        limit = max_prompt_length or self.config.max_position_embeddings - max_completion_length
        prompts = [fit_prompt(self.processor.encode(r["prompt"]), limit, prompt_truncation, r["prompt"]) for r in rows]
        answer = [self.mask_token_id] * max_completion_length
        ids, real = left_pad([prompt + answer for prompt in prompts], self.pad_token_id)
        fill = torch.arange(ids.shape[1]).expand_as(ids) >= ids.shape[1] - max_completion_length
        # BERT's positions are absolute: counted from the first real token, padding does not move a row.
        positions = (real.cumsum(1) - 1).clamp(min=0)
        text = {"task": task, "token_space": self.token_space(task)}
        return Canvas(ids=ids, fill_mask=fill, attention_mask=real, position_ids=positions, **text)

    def decode(self, canvas, completion_mask):
        rows = [ids[mask] for ids, mask in zip(canvas.ids, completion_mask, strict=True)]
        return self.processor.batch_decode(rows, skip_special_tokens=True)


class BertForDiffusion(MaskedDiffusionMixin, BertForMaskedLM):
    policy_class = BertPolicy


def build():
    """A random BERT of 50,000 weights with a ten-word vocabulary."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "mask_token": "[MASK]", "sep_token": "[SEP]"}
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, initializer_range=0.1, **sizes)
    return BertForDiffusion(config), PreTrainedTokenizerFast(tokenizer_object=words, **special)


def repeats(prompts, completions, **_):
    """Share of the four answer positions that hold the prompt's last word, in [0, 1]."""
    return [text.split().count(prompt.split()[-1]) / 4 for prompt, text in zip(prompts, completions, strict=True)]


if __name__ == "__main__":
    set_seed(0)
    model, tokenizer = build()
    rows = [{"prompt": f"{start} {word}"} for start in ("say", "please say") for word in WORDS[5:]]
    settings = {"max_completion_length": 4, "steps": 4, "num_iterations": 2, "logging_steps": 20, "use_cpu": True}
    training = {"per_device_train_batch_size": 80, "learning_rate": 4e-3, "max_steps": 200, "save_strategy": "no"}
    args = UniGRPOConfig(tempfile.mkdtemp(), **settings, **training)
    trainer = UniGRPOTrainer(model, repeats, args, rows, eval_dataset=rows, processing_class=tokenizer)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    print(f"reward before {before:.2f}, after {trainer.evaluate()['eval_reward']:.2f}")

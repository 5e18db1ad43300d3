"""Any Hugging Face masked LM as a diffusion policy: a BERT of random weights learns to repeat a word."""

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, set_seed

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.models import DiffusionPolicy, MaskedDiffusionMixin
from unigrpo.models.base import fit_prompt, left_pad
from unigrpo.types import Canvas, TokenSpace


class BertPolicy(DiffusionPolicy):
    """Prompt on the left, answer on the right; every id after [MASK] may be written and [SEP] ends an answer."""

    processor_class = BertTokenizer

    def __init__(self, config, processor):
        self.config, self.processor, self.stop_token_ids = config, processor, (processor.sep_token_id,)
        self.mask_token_id, self.pad_token_id = processor.mask_token_id, processor.pad_token_id

    def token_space(self, task):
        return TokenSpace(start=self.mask_token_id + 1, stop=self.config.vocab_size)

    def encode(self, rows, task="text", *, max_completion_length, max_prompt_length=None, prompt_truncation="error"):
        limit = max_prompt_length or self.config.max_position_embeddings - max_completion_length
        prompts = [fit_prompt(self.answer_ids(r["prompt"]), limit, prompt_truncation, r["prompt"]) for r in rows]
        ids, real = left_pad([p + [self.mask_token_id] * max_completion_length for p in prompts], self.pad_token_id)
        fill = torch.arange(ids.shape[1]).expand_as(ids) >= ids.shape[1] - max_completion_length
        # BERT's positions are absolute: counted from the first real token, padding does not move a row.
        where = {"fill_mask": fill, "attention_mask": real, "position_ids": (real.cumsum(1) - 1).clamp(min=0)}
        return Canvas(ids=ids, task=task, token_space=self.token_space(task), **where)

    def decode(self, canvas, completion_mask):
        counted = canvas.ids.where(completion_mask, self.pad_token_id)
        return self.processor.batch_decode(counted, skip_special_tokens=True)


class BertForDiffusion(MaskedDiffusionMixin, BertForMaskedLM):
    policy_class = BertPolicy


def build():
    """A BERT of 65,000 random weights, and a tokenizer of ten words."""
    words = ["[PAD]", "[MASK]", "[SEP]", "please", "say", "red", "green", "blue", "black", "white"]
    tokenizer = BertTokenizer({word: i for i, word in enumerate(words)}, unk_token="[PAD]", cls_token="[SEP]")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return BertForDiffusion(BertConfig(vocab_size=len(words), initializer_range=0.1, **sizes)), tokenizer


if __name__ == "__main__":
    set_seed(0)
    model, tokenizer = build()
    rows = [{"prompt": f"{p}say {w}", "solution": w} for p in ("", "please ") for w in ("red", "green", "blue")]
    options = {"max_completion_length": 2, "steps": 2, "learning_rate": 2e-3, "max_steps": 200, "save_strategy": "no"}
    args = UniGRPOConfig("runs/repeat", per_device_train_batch_size=96, num_generations=16, **options)
    trainer = UniGRPOTrainer(model, "exact_match", args, rows, rows, tokenizer)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    print(f"reward before {before:.2f}, after {trainer.evaluate()['eval_reward']:.2f}")

"""Run by a Python that has transformers 4 and not this library: what does it see in a folder that we saved? Prints JSON.

The network is a plain one under the published key names, as the public code has them, so that ``from_pretrained`` of
transformers 4 itself opens the weights.
"""

import json
import sys

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel


class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(config.d_model)), config.rms_norm_eps

    def forward(self, hidden):
        return self.weight * F.rms_norm(hidden.float(), hidden.shape[-1:], eps=self.eps).to(hidden.dtype)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, wide, self.heads, self.theta = config.d_model, config.mlp_hidden_size, config.n_heads, config.rope_theta
        self.attn_norm, self.ff_norm = Norm(config), Norm(config)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            setattr(self, name, nn.Linear(size, size, bias=False))
        self.ff_proj, self.up_proj = nn.Linear(size, wide, bias=False), nn.Linear(size, wide, bias=False)
        self.ff_out = nn.Linear(wide, size, bias=False)

    def rotated(self, states):
        half = states.shape[-1] // 2
        angles = torch.arange(states.shape[-2])[:, None] / self.theta ** (torch.arange(half) / half)
        pairs = torch.complex(*states.float().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([pairs.real, pairs.imag], -1).to(states.dtype)

    def forward(self, hidden):
        normed = self.attn_norm(hidden)
        query, key, value = (
            own(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for own in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(self.rotated(query), self.rotated(key), value)
        hidden = hidden + self.attn_out(mixed.transpose(1, 2).flatten(2))
        normed = self.ff_norm(hidden)
        return hidden + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))


class Trunk(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.d_model),
                "blocks": nn.ModuleList(Block(config) for _ in range(config.n_layers)),
                "ln_f": Norm(config),
                "ff_out": nn.Linear(config.d_model, config.vocab_size, bias=False),
            }
        )


def known(name):
    """The configuration and the network of ``model_type`` ``name``, registered."""
    config = type("Config", (PretrainedConfig,), {"model_type": name})

    class Model(PreTrainedModel):
        config_class = config

        def __init__(self, config):
            super().__init__(config)
            self.model = Trunk(config)

        def forward(self, ids):
            hidden = self.model.transformer["wte"](ids)
            for block in self.model.transformer["blocks"]:
                hidden = block(hidden)
            return self.model.transformer["ff_out"](self.model.transformer["ln_f"](hidden)).float()

    AutoConfig.register(name, config)
    AutoModel.register(config, Model)


@torch.no_grad()
def seen(folder, chat, ids):
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, loading = AutoModel.from_pretrained(folder, torch_dtype="auto", output_loading_info=True)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return {
        "version": transformers.__version__,
        "config": config.to_dict(),
        "loading": {key: sorted(map(str, value)) for key, value in loading.items()},
        "dtype": str(model.dtype),
        "logits": model.eval()(torch.tensor(ids)).tolist(),
        "tokenizer": type(tokenizer).__name__,
        "text": text,
        "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
        "special": tokenizer.all_special_ids,
        "decoded": tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True),
    }


if __name__ == "__main__":
    for family in ("mmada", "llada"):
        known(family)
    print(json.dumps([seen(*case) for case in json.loads(sys.stdin.read())]))

"""A plain implementation of the public code's algorithms: every position, the whole vocabulary, float64 where it uses it.

It reads the weights of a model by their published names and shares no code with the library. It is what the library is
measured against and checked with, so it is written to be read, and not faster than what it stands for.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Clock:
    """Seconds spent in named parts; ``tick`` is called at the beginning of each forward."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def tick(self) -> None: ...

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


class PlainModel:
    """LLaDA's forward over a model's own parameters, a LoRA's among them; gradients reach them."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.config = model.config
        self.weights = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
            for name, weight in model.named_parameters()
        }
        self.scale = next((own.lora_alpha / own.r for own in getattr(model, "peft_config", {}).values()), 1.0)

    def logits(self, ids: Tensor, bias: Tensor | None = None, clock: Clock | None = None) -> Tensor:
        """``[B, L, V]`` of ``ids [B, L]``; ``bias [B, 1, L, L]`` bool, True = attended."""
        clock = clock or Clock()
        clock.tick()
        hidden = self.hidden(ids, bias, clock)
        with clock("LM head"):
            return F.linear(hidden, self.weights["model.transformer.ff_out.weight"])

    def hidden(self, ids: Tensor, bias: Tensor | None = None, clock: Clock | None = None) -> Tensor:
        """Final hidden states ``[B, L, d]``."""
        clock = clock or Clock()
        hidden = F.embedding(ids, self.weights["model.transformer.wte.weight"])
        for layer in range(self.config.n_layers):
            block = f"model.transformer.blocks.{layer}."
            with clock("attention"):
                hidden = hidden + self._attention(hidden, block, bias)
            with clock("MLP"):
                hidden = hidden + self._mlp(hidden, block)
        return self._norm(hidden, "model.transformer.ln_f.weight")

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return self.weights[name] * (hidden.float() * scale).to(hidden.dtype)

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        out, down = F.linear(hidden, self.weights[f"{name}.weight"]), self.weights.get(f"{name}.lora_A.default.weight")
        if down is None:
            return out
        up = self.weights[f"{name}.lora_B.default.weight"]
        return out + self.scale * F.linear(F.linear(hidden.to(down.dtype), down), up).to(out.dtype)

    def _attention(self, hidden: Tensor, block: str, bias: Tensor | None) -> Tensor:
        normed = self._norm(hidden, f"{block}attn_norm.weight")
        query, key, value = (self._heads(self._linear(normed, f"{block}{name}_proj")) for name in "qkv")
        mixed = F.scaled_dot_product_attention(self._rotate(query), self._rotate(key), value, attn_mask=bias)
        return self._linear(mixed.transpose(1, 2).flatten(2), f"{block}attn_out")

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.config.n_heads, -1)).transpose(1, 2)

    def _rotate(self, states: Tensor) -> Tensor:
        length, size = states.shape[-2:]
        frequencies = 1.0 / self.config.rope_theta ** (torch.arange(0, size, 2, device=states.device).float() / size)
        angles = torch.outer(torch.arange(length, device=states.device).float(), frequencies).repeat(1, 2)
        first, second = states.float().chunk(2, dim=-1)
        return (states.float() * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()).to(states.dtype)

    def _mlp(self, hidden: Tensor, block: str) -> Tensor:
        normed = self._norm(hidden, f"{block}ff_norm.weight")
        gate, up = self._linear(normed, f"{block}ff_proj"), self._linear(normed, f"{block}up_proj")
        return self._linear(F.silu(gate) * up, f"{block}ff_out")


def with_gumbel_noise(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Scores whose argmax is a draw from softmax(logits / temperature); one float64 uniform an entry."""
    logits = logits.to(torch.float64)
    noise = torch.rand(logits.shape, dtype=torch.float64, device=logits.device, generator=generator)
    return logits.exp() / (-torch.log(noise)) ** temperature


def even_shares(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` near-equal integers, the larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


@torch.no_grad()
def text_rollout(
    model: PlainModel,
    ids: Tensor,
    prompt: int,
    *,
    steps: int,
    block_length: int,
    temperature: float,
    clock: Clock,
    generator: torch.Generator,
) -> Tensor:
    """``ids [B, L]`` with everything after the first ``prompt`` positions written, block after block, surest first."""
    ids, mask_id, blocks = ids.clone(), model.config.mask_token_id, (ids.shape[1] - prompt) // block_length
    for block, block_steps in enumerate(even_shares(steps, blocks)):
        end = prompt + (block + 1) * block_length
        for count in even_shares(block_length, block_steps):
            logits = model.logits(ids, clock=clock)
            scores = logits
            if temperature:
                with clock("Gumbel"):
                    scores = with_gumbel_noise(logits, temperature, generator)
            with clock("argmax"):
                tokens = scores.argmax(dim=-1)
            with clock("softmax and cast"):
                probs = logits.to(torch.float64).softmax(dim=-1)
                confidence = probs.gather(-1, tokens[..., None]).squeeze(-1)
            confidence = confidence.masked_fill(ids != mask_id, -torch.inf)
            confidence[:, end:] = -torch.inf
            chosen = confidence.topk(count, dim=1).indices
            ids.scatter_(1, chosen, tokens.gather(1, chosen))
    return ids


@torch.no_grad()
def image_rollout(
    model: PlainModel,
    prompts: tuple[Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    codes: slice,
    image_tokens: int,
    *,
    steps: int,
    guidance_scale: float,
    clock: Clock,
    generator: torch.Generator,
) -> Tensor:
    """MaskGIT over the last ``image_tokens`` positions but one; code ids ``[B, image_tokens]``.

    ``prompts`` and ``masks`` hold the conditional and the unconditional ``[B, L]``; ``codes`` are their vocabulary ids.
    """
    image, mask_id = slice(-image_tokens - 1, -1), model.config.mask_token_id
    conditional, unconditional = (ids.clone() for ids in prompts)
    mask = torch.cat(masks)
    bias = mask[:, None, :, None] & mask[:, None, None, :] | torch.eye(
        mask.shape[1], dtype=torch.bool, device=mask.device
    )
    scale = 1.0
    for step in range(steps):
        unconditional[:, image] = conditional[:, image]
        logits = model.logits(torch.cat([conditional, unconditional]), bias, clock)
        with clock("guidance"):
            cond, uncond = logits.chunk(2)
            logits = ((1 + guidance_scale) * cond - guidance_scale * uncond)[:, image, codes]
        with clock("softmax and cast"):
            probs = logits.softmax(dim=-1)
        with clock("multinomial"):
            drawn = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(probs.shape[:2])
        unknown = conditional[:, image] == mask_id
        picked = probs.gather(-1, drawn[..., None]).squeeze(-1)
        drawn = torch.where(unknown, drawn, conditional[:, image] - codes.start)
        picked = torch.where(unknown, picked, torch.finfo(picked.dtype).max)
        done = (step + 1) / steps
        scale *= 1 - done
        hide = max(1, min(math.floor(image_tokens * math.cos(math.pi / 2 * done)), int(unknown[0].sum()) - 1))
        noise = torch.zeros(drawn.shape, device=drawn.device).uniform_(0, 1, generator=generator)
        gumbel = -_log(-_log(noise))
        confidence = _log(picked) + scale * gumbel
        again = confidence < confidence.sort(dim=1).values[:, hide : hide + 1]
        conditional[:, image] = torch.where(again, mask_id, drawn + codes.start)
    return drawn + codes.start


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=1e-20).log()


def token_logps(model: PlainModel, noisy: Tensor, ids: Tensor) -> Tensor:
    """log p of ``ids`` at every position of the corrupted rows, ``[B, L]``."""
    table = F.log_softmax(model.logits(noisy).float(), dim=-1)
    return table.gather(-1, ids[..., None]).squeeze(-1)


def policy_loss(
    logps: Tensor, old: Tensor, advantages: Tensor, target: Tensor, epsilon: float = 0.2, beta: float = 0.01
) -> Tensor:
    """Clipped surrogate with a k3 KL to the old policy, a mean over each row's scored tokens and then over rows."""
    ratio = (logps - old).exp()
    advantages = advantages[:, None]
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)
    kl = (old - logps).exp() - (old - logps) - 1
    rows = ((beta * kl - surrogate) * target).sum(dim=1) / target.sum(dim=1)
    return rows.mean()


def update(model: PlainModel, batch, clock: Clock) -> Tensor:
    """One loss step of an ``UpdateBatch``: old pass, forward, backward. The loss; gradients are left on the weights."""
    ids, target = batch.canvas.ids, batch.hidden
    noisy = ids.masked_fill(target, model.config.mask_token_id)
    with clock("old forward"), torch.no_grad():
        old = token_logps(model, noisy, ids) + batch.old_shift
    with clock("forward"):
        loss = policy_loss(token_logps(model, noisy, ids), old, batch.advantages, target)
    with clock("backward"):
        loss.backward()
    return loss.detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingRows:
    """Given rows to denoise, all ``[B, L]``: clean ids, what is hidden, the weight of each -log p; ``bias`` as in ``logits``."""

    ids: Tensor
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def denoising(model: PlainModel, rows: DenoisingRows, clock: Clock) -> Tensor:
    """One fine-tuning step: logits of every position, cross-entropy where a token is scored. Gradients are left on the weights."""
    scored = rows.weight > 0
    with clock("forward"):
        logits = model.logits(rows.ids.masked_fill(rows.hidden, model.config.mask_token_id), rows.bias)
        costs = F.cross_entropy(logits[scored], rows.ids[scored], reduction="none")
        loss = (rows.weight[scored] * costs).sum()
    with clock("backward"):
        loss.backward()
    return loss.detach()

"""Convolutional encoder and decoder of MAGVIT-v2. Module names are the published checkpoint's key names."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration import MagvitV2Config


def norm(config: MagvitV2Config, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, channels, eps=1e-6)


def conv3(inner: int, outer: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel_size=3, stride=stride, padding=padding)


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside a shortcut, a 1x1 convolution where widths differ."""

    def __init__(self, config: MagvitV2Config, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(config, inner), conv3(inner, outer)
        self.norm2, self.conv2 = norm(config, outer), conv3(outer, outer)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Single-head attention over all places of the feature map."""

    def __init__(self, config: MagvitV2Config, channels: int) -> None:
        super().__init__()
        self.norm = norm(config, channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(channels, channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h[:, 0].mT.reshape(x.shape))


class Resample(nn.Module):
    """Half or double resolution."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = conv3(channels, channels) if up else conv3(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def middle(config: MagvitV2Config, channels: int) -> nn.ModuleDict:
    """Block, attention, block at the coarsest resolution."""
    return nn.ModuleDict(
        {
            "block_1": ResidualBlock(config, channels, channels),
            "attn_1": Attention(config, channels),
            "block_2": ResidualBlock(config, channels, channels),
        }
    )


def level(config: MagvitV2Config, inner: int, outer: int, blocks: int) -> nn.ModuleDict:
    """The residual blocks of one resolution."""
    widths = [inner] + [outer] * blocks
    return nn.ModuleDict({"block": nn.ModuleList(ResidualBlock(config, a, b) for a, b in pairwise(widths))})


class Encoder(nn.Module):
    """Pixels ``[B, 3, H, W]`` to code logits ``[B, bits, H / factor, W / factor]``."""

    def __init__(self, config: MagvitV2Config) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.encoder_multipliers]
        self.conv_in = conv3(3, config.channels)
        self.down = nn.ModuleList()
        inner = config.channels
        for number, (outer, blocks) in enumerate(zip(widths, config.encoder_blocks, strict=True)):
            stage = level(config, inner, outer, blocks)
            if number < len(widths) - 1:
                stage["downsample"] = Resample(outer, up=False)
            self.down.append(stage)
            inner = outer
        self.mid = middle(config, inner)
        self.norm_out, self.conv_out = norm(config, inner), conv3(inner, config.code_bits)
        self.quant_conv = nn.Conv2d(config.code_bits, config.code_bits, kernel_size=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to ``[B, bits, h, w]``."""
        h = self.conv_in(pixels)
        for stage in self.down:
            for block in stage["block"]:
                h = block(h)
            if "downsample" in stage:
                h = stage["downsample"](h)
        for layer in self.mid.values():
            h = layer(h)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(h))))


class Decoder(nn.Module):
    """Codes as signs ``[B, bits, h, w]`` to pixels ``[B, 3, h * factor, w * factor]``."""

    def __init__(self, config: MagvitV2Config) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.decoder_multipliers]
        inner = widths[-1]
        self.post_quant_conv = nn.Conv2d(config.code_bits, config.code_bits, kernel_size=1)
        self.conv_in = conv3(config.code_bits, inner)
        self.mid = middle(config, inner)
        stages = []
        for number, (outer, blocks) in reversed(list(enumerate(zip(widths, config.decoder_blocks, strict=True)))):
            stage = level(config, inner, outer, blocks)
            if number > 0:
                stage["upsample"] = Resample(outer, up=True)
            stages.append(stage)
            inner = outer
        self.up = nn.ModuleList(reversed(stages))
        self.norm_out, self.conv_out = norm(config, inner), conv3(inner, 3)

    def forward(self, signs: Tensor) -> Tensor:
        """``[B, bits, h, w]`` of +-1 to ``[B, 3, H, W]``, not clipped."""
        h = self.conv_in(self.post_quant_conv(signs))
        for layer in self.mid.values():
            h = layer(h)
        for stage in reversed(self.up):
            for block in stage["block"]:
                h = block(h)
            if "upsample" in stage:
                h = stage["upsample"](h)
        return self.conv_out(F.silu(self.norm_out(h)))


class LookupFreeQuantizer(nn.Module):
    """Sign quantisation: channel 0 is the most significant bit, and a logit of exactly 0 is a zero bit."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        codes = torch.arange(2**bits)
        self.register_buffer("power_vals", powers)
        self.register_buffer("embedding", ((codes[:, None] & powers) > 0).float() * 2.0 - 1.0)

    def codes(self, logits: Tensor) -> Tensor:
        """``[B, bits, h, w]`` to ``[B, h * w]`` int64, row-major."""
        return ((logits > 0).permute(0, 2, 3, 1) * self.power_vals).sum(dim=-1).flatten(1)

    def signs(self, codes: Tensor) -> Tensor:
        """``[...]`` int64 to ``[..., bits]`` of +-1."""
        return self.embedding[codes]

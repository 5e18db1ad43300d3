"""Training runs on several processes under each of accelerate's engines, small enough for a test."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import LoraConfig
from transformers import Trainer, TrainerCallback

from unigrpo import UniGRPOConfig, UniGRPOTrainer

from .tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor


class Sharded(UniGRPOTrainer):
    """A trainer whose accelerate shards with FSDP2, which it leaves out on processors without a word."""

    def create_accelerator_and_postprocess(self) -> None:
        original = Trainer.create_accelerator_and_postprocess

        def with_plugin(trainer: Trainer) -> None:
            original(trainer)
            plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                auto_wrap_policy="transformer_based_wrap",
                cpu_ram_efficient_loading=False,
                state_dict_type="FULL_STATE_DICT",
                reshard_after_forward=True,
            )
            if trainer.args.bf16:
                plugin.set_mixed_precision("bf16")
            AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
            trainer.is_fsdp_enabled = True

        with patch.object(Trainer, "create_accelerator_and_postprocess", with_plugin):
            super().create_accelerator_and_postprocess()

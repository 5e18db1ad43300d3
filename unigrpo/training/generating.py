"""``trainer.generate``: answers from the policy as it stands."""

from __future__ import annotations

from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled

from ..rollout.generate import LoadedPolicy


class Generates:
    """A mixin of the trainers, which have a ``policy`` and a ``codec``, None before the first picture."""

    def generate(self: Any, prompts: Any, **options: Any) -> list[Any]:
        """One answer a prompt from the policy that is being trained, on this process; arguments as ``LoadedPolicy.generate``'s.

        Raises:
            ValueError: the weights are sharded over processes, or what ``LoadedPolicy.generate`` raises.
        """
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "generate() needs the weights in one piece, and they are sharded over processes: call save_model(), then "
                "load_policy(output_dir).generate(...)"
            )
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        loaded = LoadedPolicy(model=model, policy=self.policy, image_tokenizer=self._image_tokenizer, codec=self.codec)
        return loaded.generate(prompts, **options)

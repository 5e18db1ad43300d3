"""``trainer.generate``: answers from the policy as it stands."""

from __future__ import annotations

from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled

from ..config.arguments import UniGRPOConfig
from ..config.settings import LENGTHS
from ..rollout.generate import LoadedPolicy
from ..rollout.generate_options import SAME


class Generates:
    """A mixin of the trainers, which have a ``policy`` and a ``codec``, None before the first picture."""

    def generate(self: Any, prompts: Any, **options: Any) -> list[Any]:
        """One answer a prompt from the policy that is being trained, on this process; arguments as ``LoadedPolicy.generate``'s.

        The image size is the run's unless another is given. So are text lengths, together, where none of them is given.

        Raises:
            ValueError: the weights are sharded over processes, or what ``LoadedPolicy.generate`` raises.
        """
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "generate() needs the weights in one piece, and they are sharded over processes: call save_model(), then "
                "load_policy(output_dir).generate(...)"
            )
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        pictures = {"image_tokenizer": self._image_tokenizer, "codec": self.codec}
        loaded = LoadedPolicy(model=model, policy=self.policy, usual=_usual(self.args, options), **pictures)
        return loaded.generate(prompts, **options)


def _usual(args: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The size of a run's pictures; how long its text answers are and in how many steps they are written, which suit each other."""
    if not isinstance(args, UniGRPOConfig):
        return {}
    found = {"image_size": args.for_task("t2i").image_size}
    if given.keys().isdisjoint({*LENGTHS, *SAME}):
        found |= {key: getattr(args.for_task("text"), key) for key in LENGTHS}
    return {key: value for key, value in found.items() if value is not None}

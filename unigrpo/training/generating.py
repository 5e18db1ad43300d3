"""``trainer.generate``: answers from the policy as it stands."""

from __future__ import annotations

from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled

from ..config.arguments import UniGRPOConfig
from ..config.settings import LENGTHS
from ..rollout.generate import LoadedPolicy
from ..rollout.generate_options import SAME
from ..types import TASKS, is_picture, spans_of


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
    """The size of pictures of the task that is asked for; how long its text answers, or thoughts, are and in how many steps they are
    written, which suit each other.
    """
    if not isinstance(args, UniGRPOConfig):
        return {}
    task = given.get("task") or ("text" if given.get("images") is None else "mmu")
    first, last = (spans_of(task)[place] if task in TASKS else "text" for place in (0, -1))
    found = {"image_size": args.for_task(last).image_size}
    if given.keys().isdisjoint({*LENGTHS, *SAME}):
        found |= {key: getattr(args.for_task("text" if is_picture(first) else first), key) for key in LENGTHS}
    return {key: value for key, value in found.items() if value is not None}

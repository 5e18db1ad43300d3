"""Checkpoints that hold the place inside a rollout window, and the last good one before a bad step."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ...config.arguments import UniGRPOConfig
from ...errors import CheckpointError, NonFiniteError
from ...models.adapters import trained_at_the_top
from ...models.checkpoint_files import reading
from ...models.reference import is_peft, reload_adapters
from ..window import Window, rebuild_window
from .given_schedule import as_given
from .run_folder import checkpoint_folder
from .saving import AtomicCheckpoints
from .window_file import load_window, save_window


REFERENCE_FILE = "reference_model.safetensors"
WINDOW_FILE = "rollout_window_{rank}.safetensors"


def window_file(checkpoint: str | Path, rank: int) -> Path:
    """Where a checkpoint keeps the rollout buffer of one rank."""
    return Path(checkpoint) / WINDOW_FILE.format(rank=rank)


class Collected(TrainerCallback):
    """Keeps what a trainer has collected since its last log, at the start of a step and across a resume."""

    def __init__(self, trainer: WindowCheckpoints) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        """Trainer has just set its own counters to zero."""
        resumed, self.trainer._resumed = self.trainer._resumed, {}
        if "loss" in resumed:
            self.trainer._tr_loss += resumed["loss"]
            self.trainer._globalstep_last_logged = resumed["logged_step"]

    def on_step_begin(self, args, state, control, **kwargs: Any) -> None:
        self.trainer._before_step = self.trainer._collected()


class WindowCheckpoints(AtomicCheckpoints):
    """What ``UniGRPOTrainer`` adds to a checkpoint.

    The rollout window, micro-step and metrics without a log of every rank, and the synchronised reference.
    """

    args: UniGRPOConfig
    _window: Window | None
    _step_failed = False
    _cure = "A lower learning_rate, log_ratio_clip, advantage_clip, or leaving these rows out may help"

    @property
    def _window_shape(self) -> tuple[int, int]:
        """Inner updates of a window, and micro-steps of each."""
        updates, steps = self.args.num_iterations, self.args.steps_per_generation
        assert updates is not None and steps is not None, "UniGRPOConfig has filled them in"
        return updates, steps

    @property
    def _current(self) -> Window:
        """The window that is trained on."""
        assert self._window is not None, "the first micro-step samples a window"
        return self._window

    @property
    def _moving_reference(self) -> nn.Module | None:
        """The reference, where it is mixed with the policy now and then."""
        return self.accelerator.unwrap_model(self._twin) if self.args.sync_ref_model else None

    def _check_norm(self, norm: Any) -> None:
        """The norm of the finished step's gradient; a fault names the step's rows."""
        self._guard.check_norm(norm, self._window.experiences, self._window.table)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._resumed: dict[str, Any] = {}
        self._step_failed = False
        self.remove_callback(Collected)
        self.add_callback(Collected(self))
        return super().train(*args, **kwargs)

    train.__doc__ = AtomicCheckpoints.train.__doc__

    def _add_files(self, folder: Path) -> list[str]:
        inside = self._window is not None and self._micro_step % math.prod(self._window_shape) > 0
        experiences, order = (self._window.experiences, self._window.order) if inside else ([], [])
        path = window_file(folder, self.accelerator.process_index)
        save_window(path, experiences, order, self._micro_step, self._window_sizes(), self._pending())
        twin = self._moving_reference
        if twin is not None and self.args.should_save:
            save_file({name: value.contiguous() for name, value in twin.state_dict().items()}, folder / REFERENCE_FILE)
        return [WINDOW_FILE]

    def _collected(self) -> dict[str, Any]:
        """What has been collected since the last log, and the rollout batches that fitted."""
        return {
            "metrics": self._metrics.pending(),
            "fitted": dict(self._fitted),
            "loss": self._tr_loss.clone(),
            "logged_step": self._globalstep_last_logged,
        }

    def _pending(self) -> dict[str, Any]:
        """``_collected`` at the end of the last whole step, as JSON."""
        collected = self._before_step if self._step_failed else self._collected()
        return {**collected, "loss": collected["loss"].item()}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also restores the place inside the window, which the weights alone cannot give back."""
        with reading(f"the optimizer's state in {checkpoint!r}"), self._settings_kept(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        self._micro_step, self._window = 0, None
        if checkpoint is None:
            return
        path = window_file(checkpoint, self.accelerator.process_index)
        if not path.exists():
            raise ValueError(f"{checkpoint} has no {path.name}: it was not written by this trainer with as many ranks")
        experiences, order, self._micro_step, sizes, pending = load_window(path)
        self._check_same_window(sizes, checkpoint)
        self._restore(pending)
        if experiences:
            self._window = rebuild_window(self.pipeline(), experiences, order)
        reference, twin = Path(checkpoint) / REFERENCE_FILE, self._moving_reference
        if twin is not None and reference.exists():
            with reading(str(reference)):
                twin.load_state_dict(load_file(reference))

    def _settings_kept(self, checkpoint: str | None) -> AbstractContextManager:
        """``as_given``; DeepSpeed's engine has loaded its own by now."""
        return (
            nullcontext()
            if checkpoint is None or self.is_deepspeed_enabled
            else as_given(self.optimizer, self.lr_scheduler)
        )

    def _restore(self, pending: dict[str, Any]) -> None:
        """Goes on from what ``_pending`` gave; Trainer's own counters follow when training begins."""
        self._metrics.restore(pending["metrics"])
        self._fitted.update(pending["fitted"])
        self._resumed = pending

    def _window_sizes(self) -> dict[str, int]:
        """What the micro-step counter of a checkpoint counts in; a resumed run must agree."""
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
        names += ("num_generations", "num_iterations", "world_size")
        return {name: getattr(self.args, name) for name in names}

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As in transformers, which never unpickles it."""
        with reading(f"the random state in {checkpoint!r}"):
            super()._load_rng_state(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in transformers, and of several adapters the trained one is what whoever opens the folder finds."""
        super()._save(output_dir, state_dict)
        if is_peft(self.model) and self.args.should_save:
            trained_at_the_top(self.model, output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Several adapters are read here: transformers looks for the trained one in another place, or only for its frozen copy."""
        with reading(f"checkpoint {resume_from_checkpoint!r}"):
            if is_peft(self.model) and len(self.model.peft_config) > 1 and not self.is_fsdp_enabled:
                reload_adapters(self.model, resume_from_checkpoint)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _check_same_window(self, sizes: dict[str, int], checkpoint: str) -> None:
        own = self._window_sizes()
        changed = {name: f"{value} there, {own[name]} here" for name, value in sizes.items() if value != own[name]}
        if changed:
            raise ValueError(
                f"{checkpoint} counts batches of another size: {changed}; resume with the same batch sizes, or start a "
                "new run from its weights"
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As in transformers, which asks for it once a step, just before the optimizer's: there a bad step is stopped."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not self.is_deepspeed_enabled:
            self._stop_unless_finite(model, self._micro_step - 1, norm)
        return norm

    def _stop_unless_finite(self, model: nn.Module, micro_step: int, norm: Any = None) -> None:
        """Raises ``NonFiniteError`` before a bad step reaches the weights; the last good state is saved first.

        fp16's loss scaler skips steps that overflow by itself, so there only the loss is checked.

        Args:
            micro_step: the one that ended the optimizer step.
            norm: of the step's gradient, where it is known.
        """
        if self.accelerator.scaler is None and norm is not None:
            self._check_norm(norm)
        found = self._guard.flush()
        bad = torch.tensor([bool(found)], device=self.accelerator.device)
        if not bool(self.accelerator.gather(bad).any()):
            return
        every = self.args.gradient_accumulation_steps
        self._micro_step = micro_step // every * every
        what = f"step {self.state.global_step + 1} is not finite: {found or 'on another rank'}"
        folder = checkpoint_folder(self._get_output_dir(trial=None), self.state.global_step)
        if self._saved_step != self.state.global_step:
            self._step_failed = True
            try:
                self._save_checkpoint(model, trial=None)
            except CheckpointError as error:
                raise NonFiniteError(f"{what}. {self._cure}. The state before it is lost: {error}") from error
        raise NonFiniteError(f"{what}. The weights before it are in {folder}; resume from there. {self._cure}")

    def _stop_if_applied(self, engine: nn.Module) -> None:
        """Raises ``NonFiniteError`` after a step of DeepSpeed's with a gradient that was not finite.

        The engine steps inside backward: the weights in memory are no longer the last good ones. With fp16 it skips such
        steps by itself.
        """
        norm = engine.get_global_grad_norm()
        if norm is None or math.isfinite(norm) or engine.fp16_enabled():
            return
        raise NonFiniteError(
            f"gradient of step {self.state.global_step + 1} is not finite, and DeepSpeed has applied it already; resume "
            f"from the last checkpoint. {self._cure}"
        )

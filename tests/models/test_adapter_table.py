"""Every kind of adapter: it trains from where it stands, reopens as it was trained, merges and goes on, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.models.adapters import merged
from unigrpo.models.quantization import prepare_quantised
from unigrpo.rollout.generate import load_policy

from ..support.adapters import CASES, Case, options_of, table
from ..support.hostile import policy_folder
from ..support.runs import logs_of
from ..support.tiny import TRAINING, low_ids, prompts, tiny_processor, wide_model


README = Path(__file__).parents[2] / "unigrpo" / "models" / "README.md"
IDS = torch.tensor([[1, 2, 7, 9, 184, 30, 184, 5], [40, 41, 184, 184, 2, 1, 77, 3]])


@pytest.fixture(scope="module", name="bases")
def base_folders(tmp_path_factory) -> dict[bool, str]:
    """The base to train on, and the one whose weights can be held in 4 bits."""
    plain, wide = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("wide")
    policy_folder(plain)
    wide_model().save_pretrained(wide)
    tiny_processor().save_pretrained(wide)
    return {False: str(plain), True: str(wide)}


def trainer_of(model, config, out: Path, max_steps: int) -> UniGRPOTrainer:
    """Each step has a window of its own, so that the first is scored by the unmoved policy."""
    own = {"num_iterations": 1, "steps_per_generation": 2, "learning_rate": 1e-2, "max_completion_length": 6}
    settings = {**TRAINING, **own, "max_steps": max_steps, "output_dir": str(out), "log_level": "error"}
    return UniGRPOTrainer(
        model, low_ids, UniGRPOConfig(**settings), prompts(16), processing_class=tiny_processor(), peft_config=config
    )


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits


def started_from_itself(trainer, start: torch.Tensor) -> None:
    """The first window of a trained run had ratio 1 and KL 0, and the reference still is what it started from."""
    first = logs_of(trainer)[0]
    assert (first["kl"], first["ratio/mean"]) == (0, 1)
    with trainer._reference() as reference:
        assert torch.equal(logits(reference), start)


def cases(common: bool) -> list:
    return [name for name, case in CASES.items() if case.exists and case.common == common]


@pytest.mark.parametrize(
    "name", [*cases(common=True), *(pytest.param(name, marks=pytest.mark.slow) for name in cases(common=False))]
)
def test_an_adapter_trains_reopens_merges_and_goes_on_or_is_refused(bases, tmp_path, name):
    case = CASES[name]
    base = bases[case.quantised]
    if case.missing:
        pytest.skip(case.missing)
    model, config = load_policy(base, device="cpu", **options_of(case)).model, case.config()
    # On some CPUs 4-bit layers have another kernel in eval mode, of other rounding; a trainer turns it off.
    prepare_quantised(model, adapters=True)
    if case.refused is not None:
        with pytest.raises(ValueError, match=case.refused):
            trainer_of(model, config, tmp_path, max_steps=1)
        return
    if case.prepare is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, config = case.prepare(model, config), None
    trainer = trainer_of(model, config, tmp_path / "run", max_steps=2)
    start = logits(trainer.model)
    trainer.train()
    started_from_itself(trainer, start)
    after = logits(trainer.model)
    assert logs_of(trainer)[1]["kl"] > 0 and not torch.equal(after, start)
    trainer.save_model()
    reopens_merges_and_goes_on(case, base, tmp_path, after)


def reopens_merges_and_goes_on(case: Case, base: str, folder: Path, after: torch.Tensor) -> None:
    saved = str(folder / "run")
    opened = load_policy(saved, device="cpu", **options_of(case)).model
    prepare_quantised(opened, adapters=True)
    torch.testing.assert_close(logits(opened), after, rtol=1e-5, atol=1e-4)
    if not case.merges:
        with pytest.raises(ValueError, match="cannot be merged"):
            merged(opened)
    elif not case.quantised:
        torch.testing.assert_close(logits(merged(opened)), after, rtol=1e-3, atol=1e-3)
    again = load_policy(base, device="cpu", **options_of(case)).model
    prepare_quantised(again, adapters=True)
    trainer = trainer_of(PeftModel.from_pretrained(again, saved, is_trainable=True), None, folder / "on", max_steps=1)
    torch.testing.assert_close(logits(trainer.model), after, rtol=1e-5, atol=1e-4)
    start = logits(trainer.model)
    trainer.train()
    started_from_itself(trainer, start)


def test_every_kind_of_this_peft_has_its_case():
    kinds = {config.__name__ for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    assert kinds <= {case.kind for case in CASES.values()}


def test_the_table_in_the_readme_is_the_one_of_the_cases():
    assert table() in README.read_text()

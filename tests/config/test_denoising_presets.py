"""Presets of masked-denoising training: their loss in plain arithmetic on one row, and what they refuse."""

from __future__ import annotations

import math
import re

import pytest
import torch

from unigrpo import MaskedDenoisingConfig
from unigrpo.config.denoising_presets import OBJECTIVES, objectives_of

from ..support.recipes import RECIPES


# Of a row of 8 with marks at 2 and 7, 4 trained tokens of which 2 are hidden at p = 0.25, a nat each:
# by the answer 2 * 4 / 4 = 2, by the row 2 * 4 / 8 = 1, the mean of what is scored 1.
EXPECTED = {
    "mmada_stage1": {"t2i": 1.0 * 1, "text": 0.1 * 1, "mmu": 1.0 * 2, "r2i": 1.0 * 2},
    "mmada_stage2": {"t2i": 1.0 * 1, "text": 0.1 * 1, "mmu": 0.5 * 2, "r2i": 1.0 * 2},
    "mmada_stage3": {"t2i": 1.0 * 1, "text": 0.4 * 1, "mmu": 0.5 * 2, "r2i": 1.0 * 2},
    "mmada_cot": {"t2i": 1.0 * 1, "text": 0.5 * 2, "mmu": 0.5 * 2, "r2i": 1.0 * 2},
    "think_then_draw": {"t2i": 1.0, "text": 0.5 * 2, "mmu": 0.5 * 2, "thought": 1.0 * 2, "picture": 1.0},
    # 0.25 is cos(pi/2 cos(pi/2 u)) at u = 0.3657: 2 / u / 4. Of the picture the mean over all four.
    "mmada_parallel_m": {"thought": 2 / (2 / math.pi * math.acos(2 / math.pi * math.acos(0.25))) / 4, "picture": 0.5},
    "mmada_stage4": {"t2i": 0.05 * 1, "text": 0.6 * 2, "mmu": 0.4 * 2, "r2i": 0.05 * 2},
    "llada": {"text": 2.0, "mmu": 2.0},
    "lumina": {"t2i": 1.0, "mmu": 1.0, "i2i": 1.0},
    "mmada_parallel_a": {"r2i": 1.0},
    "dllm": {"text": 1.0, "mmu": 1.0},
    # Over the two hidden tokens: 4, 1 - 0.25, and what visible tokens at distances 1 to 5 of places 3 and 5 add. Over four tokens: 2.
    "dream": {"text": 4.0},
    "dream_linear": {"text": 0.75},
    "dream_cart": {"text": 0.05 * (4 + 2 * 0.9 + 3 * 0.9**2 + 2 * 0.9**3 + 0.9**4) / 2},
    "mdlm": {"text": 2.0},
    "bd3lm": {"text": 2.0},
    "sdar": {"text": 2.0},
    "dfactory": {"text": 1.0},
    "diffusion_gemma": {"text": 1.0},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_costs_what_the_paper_says(name):
    hidden, trained, marks = torch.zeros(3, 8, dtype=torch.bool)
    hidden[3], hidden[5], trained[3:7], marks[2], marks[7] = True, True, True, True, True
    found = {}
    for task, objective in objectives_of(name).items():
        drawn = objective.weigh(hidden, trained, 0.25, marks)
        assert int(drawn.target.sum()) == (4 if objective.train_marks or objective.train_visible else 2)
        found[task] = objective.coefficient * float(drawn.weight.sum()) / drawn.share
    assert found == pytest.approx(EXPECTED[name])
    assert set(EXPECTED) == set(OBJECTIVES)


def test_given_keys_go_over_a_preset_and_a_tasks_own_over_both():
    found = objectives_of("mmada_cot", {"coefficient": 3.0}, {"t2i": {"coefficient": "0.5", "train_marks": False}})
    assert {task: own.coefficient for task, own in found.items()} == {"text": 3.0, "mmu": 3.0, "t2i": 0.5, "r2i": 3.0}
    assert found["t2i"].law == "cosine" and not found["t2i"].train_marks
    assert "t2i" not in objectives_of("llada") and "t2i" in objectives_of("llada", None, {"t2i": {"law": "cosine"}})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"objective": "mmada_cot", "swap_prompt": 0.3}, "swap_prompt=0.3 (read by 'thought' and 'picture')"),
        ({"objective": "llada", "caption_dropout": 0.1}, "caption_dropout=0.1 (read by 't2i' and 'picture' and 'r2i' and 'i2i')"),
        (
            {"objective": "think_then_draw", "task_overrides": {"t2i": {"swap_prompt": 0.2, "train_padding": "none"}}},
            "task_overrides.t2i.swap_prompt=0.2 (read by 'thought' and 'picture'); task_overrides.t2i.train_padding='none' (read by "
            "'text' and 'mmu' and 'r2i' and 'thought')",
        ),
        ({"objective": "llada", "task_overrides": {"text": {"train_marks": True}}}, "text.train_marks=True (read by 't2i')"),
    ],
)  # fmt: skip
def test_a_key_that_no_row_reads_is_named(tmp_path, keys, said):
    with pytest.warns(
        UserWarning, match=rf"objective '{keys['objective']}' does not read what was set: .*{re.escape(said)}$"
    ):
        MaskedDenoisingConfig(str(tmp_path), use_cpu=True, **keys)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_keys_that_a_row_reads_are_not_named(tmp_path, recwarn, objective):
    """Those of the preset, those that all tasks read, defaults, and one that one of its tasks reads."""
    read = {"swap_prompt": 0.3} if objective == "think_then_draw" else {"train_padding": "first"}
    MaskedDenoisingConfig(str(tmp_path), use_cpu=True, objective=objective, coefficient=2.0, train_marks=False, **read)
    assert not [own for own in recwarn if "does not read" in str(own.message)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mmada_stage5",), "objective='mmada_stage5' is not valid"),
        (("llada", {"laws": "linear"}), "key='laws' is not valid"),
        (("llada", None, {"draw": {"law": "cosine"}}), "task_overrides key='draw' is not valid"),
        (("llada", None, {"text": {"law": "sine"}}), "task_overrides.text.law='sine' is not valid"),
        (("llada", {"coefficient": -1}), "coefficient=-1.0 must not be negative"),
        (("mmada_cot", None, {"thought": {"law": "linear"}}), r"give a thought and its picture one law together \('r2i'\)"),
        (("llada", None, {"picture": {"law": "cosine"}}), "or each its own"),
        (("nowhere.at:all",), "objective='nowhere.at:all' cannot be imported"),
    ],
)  # fmt: skip
def test_what_is_no_preset_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        objectives_of(*arguments)


def test_the_readme_of_recipes_lists_every_objective():
    text = (RECIPES[0].parent / "README.md").read_text()
    (line,) = [own for own in text.splitlines() if own.startswith("| `objective` |")]
    assert set(re.findall(r"`(\w+)`", line)) == {"objective", *OBJECTIVES}

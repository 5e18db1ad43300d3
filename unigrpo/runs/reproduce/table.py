"""The results that can be reproduced, with what is expected of each. Expectations are written before a run, never after it."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import check_choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a held-out measure is expected to be, as ranges that contain the value.

    Attributes:
        measure: ``"accuracy"``, in percent and percentage points, or the name of a held-out reward in ``summary.json``, in its unit.
        before, gain: least and greatest.
        source: where the ranges are from.
    """

    measure: str
    before: tuple[float, float]
    gain: tuple[float, float]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much is spent.

    Attributes:
        overrides: words of a command line beside the recipe.
        expected: of a run with them.
        machine: what it is meant for.
        processes: of ``accelerate launch``.
        hours: of the whole, where it was measured; else it is counted.
        card: memory of one card in GB, 0 for a machine without one.
    """

    overrides: tuple[str, ...]
    expected: Expected
    machine: str
    processes: int = 1
    hours: float | None = None
    card: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """A result.

    Attributes:
        title: what is shown by it, in a line.
        recipe: the shipped recipe.
        rows: held-out rows that the recipe has.
        weights: parameters of the model.
        budgets: by name, the usual one first.
    """

    title: str
    recipe: str
    rows: int
    weights: float
    budgets: dict[str, Budget]


MINUTES = Expected(
    measure="accuracy",
    before=(50.0, 67.0),
    gain=(15.0, 40.0),
    source="one run of 60 steps, seed 0, on the same 256 rows: 58.6 % before, 87.9 % after; other rounding moves it by some points",
)
QUICKSTART = Expected(
    measure="accuracy",
    before=(50.0, 65.0),
    gain=(30.0, 50.0),
    source="recipes/QUICKSTARTS.md, quickstart: seeds 0 and 1 gained 39.5 and 42.0 points, shuffled rewards 2.3",
)
GSM8K = Expected(
    measure="accuracy",
    before=(35.0, 70.0),
    gain=(1.0, 15.0),
    source="arXiv 2505.15809: 65.2 before and 73.4 after UniGRPO; others measured 40.6 for the released MixCoT. No run of ours",
)
CLIP = Expected(
    measure="rewards/clip_score/mean",
    before=(22.0, 36.0),
    gain=(0.5, 6.0),
    source="arXiv 2505.15809: CLIP 29.4 before and 32.5 after UniGRPO, on prompts that it does not name. No run of ours",
)

REPRODUCTIONS: dict[str, Reproduction] = {
    "toy": Reproduction(
        title="A small MMaDA unlearns its wrong sums, from rewards alone",
        recipe="quickstart",
        rows=512,
        weights=0.68e6,
        budgets={
            "minutes": Budget(
                overrides=(
                    "max_steps=60",
                    "eval_datasets.0.limit=256",
                    "save_strategy=steps",
                    "save_steps=10",
                    "save_total_limit=2",
                ),
                expected=MINUTES,
                machine="two CPU cores",
                hours=0.03,
            ),
            "quickstart": Budget(
                overrides=("save_strategy=steps", "save_steps=30", "save_total_limit=2"),
                expected=QUICKSTART,
                machine="two CPU cores",
                hours=0.08,
            ),
        },
    ),
    "math-mmada": Reproduction(
        title="MMaDA-8B answers GSM8K better after UniGRPO",
        recipe="math_mmada_8b_lora",
        rows=1319,
        weights=8.08e9,
        budgets={
            "1gpu-day": Budget(
                overrides=("max_steps=400", "eval_datasets.0.limit=512", "save_steps=40"),
                expected=GSM8K,
                machine="one 80 GB GPU",
                card=80.0,
            ),
            "1gpu-4days": Budget(overrides=("save_steps=40",), expected=GSM8K, machine="one 80 GB GPU", card=80.0),
            "8gpu-day": Budget(
                overrides=("gradient_accumulation_steps=1", "save_steps=40"),
                expected=GSM8K,
                machine="eight 80 GB GPUs of one machine",
                processes=8,
                card=80.0,
            ),
        },
    ),
    "image-mmada": Reproduction(
        title="MMaDA-8B draws what captions say better after UniGRPO",
        recipe="image_mmada_8b_lora",
        rows=120,
        weights=8.08e9,
        budgets={
            "1gpu-day": Budget(overrides=("save_steps=60",), expected=CLIP, machine="one 80 GB GPU", card=80.0),
            "8gpu-hours": Budget(
                overrides=("gradient_accumulation_steps=1", "save_steps=60"),
                expected=CLIP,
                machine="eight 80 GB GPUs of one machine",
                processes=8,
                card=80.0,
            ),
        },
    ),
}


def chosen(name: str, budget: str | None) -> tuple[Reproduction, str, Budget]:
    """A reproduction, and the budget of that name or its usual one.

    Raises:
        ValueError: there is none of that name.
    """
    check_choice("NAME", name, tuple(REPRODUCTIONS))
    found = REPRODUCTIONS[name]
    budget = next(iter(found.budgets)) if budget is None else budget
    check_choice("--budget", budget, tuple(found.budgets))
    return found, budget, found.budgets[budget]


def listed() -> list[str]:
    """What can be reproduced, a line each."""
    lines = [f"  {name:12} {own.title}; budgets: {', '.join(own.budgets)}" for name, own in REPRODUCTIONS.items()]
    return ["what can be reproduced:", *lines, "", "`unigrpo reproduce NAME --plan` says what it would do and spend."]

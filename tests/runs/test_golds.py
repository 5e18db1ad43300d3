"""Solutions that rewards cannot read: counted by ``check``, warned of in ``train``, the end of a run where all are."""

from __future__ import annotations

import json

import pytest
import torch

from unigrpo.errors import RewardError
from unigrpo.rollout.rewards import RewardSet, Scores
from unigrpo.runs.cli import main
from unigrpo.training.scores import UNSCORED_PROMPTS, count_unreadable, refuse_unreadable

from ..support.recipes import SMALL


PROSE = "It took her 5 of the 7 days"


@pytest.fixture
def with_solutions(tiny_path, tmp_path):
    """A recipe for rows with these solutions."""

    def recipe(*solutions):
        rows = [json.dumps({"prompt": f"w{1 + i} w2", "solution": own}) + "\n" for i, own in enumerate(solutions)]
        (tmp_path / "rows.jsonl").write_text("".join(rows))
        file = tmp_path / "recipe.yaml"
        file.write_text(
            f"model: {{path: {tiny_path}}}\ndatasets: [{{path: {tmp_path / 'rows.jsonl'}}}]\n"
            "rewards: [{name: math_correctness}, {name: think_format, weight: 0.5}]\n"
            f"learning_rate: 1.0e-3\noutput_dir: {tmp_path / 'out'}\n"
        )
        return str(file)

    return recipe


@pytest.mark.smoke
@pytest.mark.parametrize(
    "solutions",
    [
        ["<answer> 145° </answer>", "<answer>3</answer>"],
        [["8"], ["\\frac{1}{2}"]],
        ["We add: $3+4=7$. So it is $\\boxed{7}$.", "$x = \\boxed{\\frac{\\sqrt{3}}{2}}$", "\\boxed{(1, 2)}", "\\boxed{x^2+1}"],
        ["After 3 days the answer is 72.", "The final answer is: $\\frac{7}{2}$.", "#### 1,234", "Alice", "12:30", "3 hours 20 minutes"],
        [5, 7],
        [0.5, 2.25],
    ],
)  # fmt: skip
def test_solutions_of_many_forms_are_read(with_solutions, capsys, solutions):
    assert main(["check", with_solutions(*solutions), "use_cpu=true"]) == 0
    assert f"gold answers of {len(solutions)} rows score 1.0" in capsys.readouterr().out


def test_check_counts_what_cannot_be_read(with_solutions, capsys):
    assert main(["check", with_solutions("5", PROSE, "A: 8"), "use_cpu=true"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"with 'math_correctness': 2 of 3 cannot be read: '{PROSE}'; the other 1 score 1.0" in said
    assert main(["check", with_solutions(PROSE, "A: 8"), "use_cpu=true"]) == 1
    assert "2 of 2 cannot be read" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_can_read_none_ends_with_an_error(with_solutions, capsys):
    recipe = with_solutions(*[PROSE] * 4)
    assert main(["train", recipe, *SMALL]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "math_correctness could not read the solution of any of the" in said and "column_map.solution" in said


def test_a_run_that_can_read_few_is_warned_once_and_goes_on(with_solutions):
    recipe = with_solutions("5", *[PROSE] * 3)
    with pytest.warns(UserWarning) as caught:
        assert main(["train", recipe, *SMALL, "num_iterations=1", "max_steps=4"]) == 0
    assert sum("math_correctness cannot read the solution of" in str(own.message) for own in caught) == 1


def window(unread, read):
    """Scores of two rewards: of the first, ``unread`` solutions could not be read and ``read`` answers are scored."""
    values = torch.tensor([[torch.nan, 1.0]] * unread + [[0.0, 1.0]] * read)
    empty = Scores.none(unread + read, 2)
    return Scores(values=values, lost=empty.lost, faults=empty.faults, unreadable=torch.tensor([unread, 0]))


@pytest.mark.parametrize("on_error", ["raise", "none"])
def test_the_end_comes_when_enough_prompts_were_unreadable_and_none_was_read(recwarn, on_error):
    def first(**_):
        return []

    rewards = RewardSet(functions=[first, lambda **_: []], on_error=on_error)
    for _ in range(UNSCORED_PROMPTS - 1):
        count_unreadable(rewards, 4, "p", window(4, 0))
    assert len(recwarn) == 1 and "first cannot read the solution of 4 of 4" in str(recwarn[0].message)
    if on_error == "none":
        count_unreadable(rewards, 4, "p", window(4, 0))
        refuse_unreadable(rewards, 1)
        return
    with pytest.raises(RewardError, match="any of the 64 answers"):
        count_unreadable(rewards, 4, "p", window(4, 0))
    # One that is read takes all back.
    count_unreadable(rewards, 4, "p", window(3, 1))
    refuse_unreadable(rewards, 1)
    assert len(recwarn) == 1

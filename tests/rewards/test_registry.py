"""Finding rewards by name, and what a text reward reads."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest

from unigrpo import rewards
from unigrpo.rewards import REWARDS, get_reward
from unigrpo.rewards.text import completion_text

from ..support import ROOT


NEED_ARGUMENTS = {"judge": "model", "length": "max_completion_length", "object_check": "detector", "remote": "url"}
NEED_ARGUMENTS |= dict.fromkeys(["pairwise_judge", "reward_model_server", "soft_tifa", "vqa_score"], "model")


EXTRAS = {"ocr": ("rapidocr_onnxruntime", "ocr"), "reasoning_gym": ("reasoning_gym", "reasoning-gym")}
"""Module and extra of rewards that need a package of their own."""


@pytest.mark.smoke
@pytest.mark.parametrize("name", sorted(REWARDS.keys() - NEED_ARGUMENTS))
def test_every_registered_name_leads_to_the_function_of_that_name(name):
    if name in EXTRAS:
        module, extra = EXTRAS[name]
        pytest.importorskip(module, reason=f'needs `pip install "unigrpo[{extra}]"`')
    reward = get_reward(name)
    assert reward.__name__ == name
    assert getattr(rewards, name) is reward
    assert name in dir(rewards)


@pytest.mark.parametrize(("name", "argument"), NEED_ARGUMENTS.items())
def test_a_reward_without_defaults_names_what_it_needs(name, argument):
    with pytest.raises(TypeError, match=argument):
        get_reward(name)


def test_no_registered_name_hides_a_module_of_the_package():
    modules = {path.stem for path in Path(rewards.__file__).parent.glob("*.py")}
    assert not modules & set(REWARDS)


def test_a_path_leads_to_any_callable():
    """A class is returned as it is, and instantiated with arguments; a function is bound to them."""
    assert get_reward("os.path:join").__name__ == "join"
    assert get_reward("unigrpo.rewards.format:think_format") is rewards.think_format
    assert get_reward("fractions:Fraction") is Fraction
    assert get_reward("fractions:Fraction", numerator=1, denominator=2) == 0.5
    bound = get_reward("math_correctness", timeout=2.0)
    assert isinstance(bound, partial) and bound.func is rewards.math_correctness
    assert bound(["p"], ["5"], solution=[5]) == [1.0]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("math_corectness", ["'math_corectness'", "Did you mean 'math_correctness'?", "think_format"]),
        ("nonsense", ["'nonsense'", ", ".join(sorted(REWARDS))]),
        ("", ["''", "math_correctness"]),
        (None, ["None", "math_correctness"]),
        ("no_such_pkg.mod:attr", ["no module 'no_such_pkg' in ", "nor among the installed packages"]),
        ("unigrpo.rewards.format:think_fromat", ["Did you mean 'unigrpo.rewards.format:think_format'?"]),
        ("unigrpo.rewards.format:OPEN", ["str, which cannot be called"]),
        (".format:think_format", ["no 'pkg.mod:attr' path"]),
        ("unigrpo.rewards.format:", ["no 'pkg.mod:attr' path"]),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_valid_ones(name, parts):
    with pytest.raises(ValueError) as error:
        get_reward(name)
    assert [part for part in parts if part not in str(error.value)] == []


def test_an_argument_that_a_reward_lacks_has_its_nearest_named():
    """``remote`` hands what it does not know to its base, whose arguments are its own too."""
    with pytest.raises(
        TypeError, match=r"'remote' has no argument 'time_out': did you mean 'timeout'\? choose among \['url'"
    ):
        get_reward("remote", url="http://127.0.0.1:1/x", time_out=3)
    assert get_reward("remote", url="http://127.0.0.1:1/x", timeout=3).timeout == 3
    with pytest.raises(TypeError, match=r"'judge' has no argument 'url': choose among \['model'.*'base_url'"):
        get_reward("judge", model="m", url="http://127.0.0.1:1/v1")


def test_the_package_and_rewards_without_a_model_are_light():
    """None of them imports what takes seconds, at its import, when it is bound to arguments or when it scores."""
    code = """
import sys
from unigrpo.rewards import REWARDS, get_reward
assert not any(name.startswith("unigrpo.rewards.") for name in sys.modules), "importing the package imports no reward"
row = {"solution": ["5"], "numbers": [[2, 3]], "target": [5], "puzzle": ["." * 16]}
get_reward("remote", url="http://127.0.0.1:1/"), get_reward("judge", model="m")
for name in ("think_format", "math_correctness", "answer_correctness", "countdown", "exact_match"):
    assert get_reward(name)(["p"], ["5"], **row)[0] is not None
get_reward("sudoku")(["p"], ["1" * 16], **row | {"solution": ["1234341221434321"]})
heavy = {"torch", "transformers", "trl", "math_verify", "sympy", "numpy"} & set(sys.modules)
assert not heavy, heavy
from PIL import Image
red = [Image.new("RGB", (4, 4), "red")]
assert get_reward("colour", colour="red")(["p"], red) == [1.0] and get_reward("jpeg_size")(["p"], red)[0] > 0
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


SAID = {"role": "assistant", "content": "chat"}


@pytest.mark.parametrize(
    ("text", "completions"),
    [
        ("plain", ["plain"]),
        ("", [""]),
        ("chat", [[SAID], (SAID,)]),
        (None, [[{**SAID, "content": None}], [{"role": "assistant"}], [SAID, SAID], [], ["a"], object(), None, b"bytes"]),
    ],
)  # fmt: skip
def test_completion_text(text, completions):
    assert [own for own in completions if completion_text(own) != text] == []

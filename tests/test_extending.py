"""A user's own parts, one file each, in an empty folder, against the wheel: without touching the library."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from .support.wheel import run


pytestmark = [pytest.mark.timeout(1200), pytest.mark.installed]

FILES = {
    "my_reward.py": '''
def brevity(completions, **columns):
    return [-float(len(text)) for text in completions]
''',
    "my_noise.py": '''
from dataclasses import dataclass

from unigrpo.algorithm.noising import Draw, Noising
from unigrpo.parts import key


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail(Noising):
    """The end of the answer hidden."""

    share: float = key(0.5, "share of the answer that is hidden", above=0, at_most=1)

    def draws(self, answer, k, num_iterations, num_samples, key):
        print(f"tail of {self.share}")
        hidden = answer.completion & (answer.completion.cumsum(0) > answer.length * (1 - self.share))
        return [Draw(hidden=hidden, target=hidden, ratio=self.share) for _ in range(num_samples)]
''',
    "my_sampler.py": '''
from dataclasses import dataclass

from unigrpo.parts import key
from unigrpo.samplers import SemiAutoregressive


@dataclass(frozen=True, slots=True, kw_only=True)
class Loud(SemiAutoregressive):
    """Says that it was asked."""

    shown: float = key(0.5, "a number that is said", above=0, at_most=1)

    def __call__(self, *given, **named):
        print(f"loud at {self.shown}")
        return SemiAutoregressive.__call__(self, *given, **named)
''',
    "my_surrogate.py": '''
def bounded(log_ratio, logps, advantages, *, most: float = 2.0):
    return log_ratio.exp().clamp(max=most) * advantages
''',
    "my_advantage.py": '''
def against_the_best(groups):
    return groups - groups.nan_to_num(float("-inf")).amax(dim=1, keepdim=True)
''',
    "my_preset.py": '''
def gentle():
    """Everything hidden, no KL."""
    return {"noising": "full", "beta": 0.0, "num_iterations": 1, "epsilon": 0.3}
''',
    "my_policy.py": '''
from unigrpo.models.mmada import MMaDAPolicy


class Polite(MMaDAPolicy):
    """Every prompt begins with a word."""

    def encode(self, rows, task="text", **options):
        return super().encode([{**row, "prompt": f"Please: {row['prompt']}"} for row in rows], task, **options)
''',
}  # fmt: skip

TINY = [
    "max_steps=1", "num_generations=4", "per_device_train_batch_size=8", "num_iterations=1", "steps=4", "eval_datasets.0.limit=4",
    "disable_tqdm=true", "output_dir=out",
]  # fmt: skip


@pytest.fixture
def home(tmp_path) -> Path:
    """An empty folder with the user's own files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.lstrip())
    return tmp_path


def trained(installed: Path, home: Path, *changes: str) -> str:
    """What the shipped quickstart prints with ``changes``, after one step."""
    printed = run([str(installed / "unigrpo"), "train", "quickstart", *TINY, *changes], home)
    assert json.loads((home / "out" / "summary.json").read_text())["optimizer_steps"] == 1
    return printed


def test_one_file_is_a_part(installed, home):
    changes = [
        'rewards=[{name: "my_reward:brevity"}]',
        "sampler={name: 'my_sampler:Loud', shown: 0.75}",
        "surrogate={name: 'my_surrogate:bounded', most: 1.5}",
        "advantage_estimator=my_advantage:against_the_best",
        "algorithm=my_preset:gentle",
        "policy=my_policy:Polite",
    ]
    assert "loud at 0.75" in trained(installed, home, *changes)
    first = json.loads((home / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["rewards/brevity/mean"] < 0 and first["mask_ratio/0.8-1.0"] == 1.0


def test_a_noising_with_a_key(installed, home):
    unigrpo = str(installed / "unigrpo")
    assert "tail of 0.25" in trained(installed, home, "noising={name: 'my_noise:Tail', share: 0.25}")
    override = "task_overrides={text: {noising: {name: 'my_noise:Tail', share: 0.75}}}"
    assert "tail of 0.75" in trained(installed, home, override)
    told = run([unigrpo, "keys", "my_noise:Tail"], home)
    assert "share: 0.5, (0, 1]" in told and "share of the answer that is hidden" in told

    def refused(*changes: str) -> str:
        done = subprocess.run(
            [unigrpo, "check", "--offline", "quickstart", *changes],
            cwd=home,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        return done.stdout

    assert "noising.share=2.0 must lie in (0, 1]" in refused("noising={name: 'my_noise:Tail', share: 2}")
    assert "has no key 'shore': did you mean 'share'" in refused("noising={name: 'my_noise:Tail', shore: 1}")
    code = run([unigrpo, "check", "--list-code", "quickstart", "noising=my_noise:Tail"], home)
    assert "runs code: my_noise:Tail" in code
    checked = subprocess.run(
        [unigrpo, "check", "--offline", "quickstart", "noising=my_noise:Tail", "mask_ratio_max=0.5"],
        cwd=home, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert "does not read what was set: mask_ratio_max=0.5 (noisings 'random' and 'coupled')" in checked.stderr

"""``python -m tests.gpu`` walked on a CPU as it runs on a borrowed GPU: not installed, without trl, datasets and math-verify."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from .gpu import laws, laws_training
from .gpu.report import NONE_MEASURED, readme_table
from .support import ROOT


pytestmark = [pytest.mark.timeout(600), pytest.mark.processes]

MISSING = ("trl", "datasets", "math_verify", "latex2sympy2_extended")

HIDDEN = """
import importlib.metadata
import sys
from importlib.machinery import PathFinder

MODULES = {missing!r}
PACKAGES = {{name.replace("_", "-") for name in MODULES}} | {{"unigrpo"}}


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in MODULES else super().find_spec(name, path, target)


# What an editable installation put here would find the library without the checkout.
sys.meta_path[:] = [own for own in sys.meta_path if "editable" not in getattr(own, "__module__", str(own))]
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
real = importlib.metadata.Distribution.from_name.__func__


def from_name(cls, name):
    if name.replace("_", "-").lower() in PACKAGES:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(cls, name)


importlib.metadata.Distribution.from_name = classmethod(from_name)
"""
"""A ``sitecustomize`` under which the packages are not there."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, str]:
    """The environment of a Python without the packages."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(HIDDEN.format(missing=MISSING))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(bare: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=bare, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def walk(bare, tmp_path_factory) -> dict:
    """The whole command on the tiny model: its answer, its files and its seconds."""
    folder, started = tmp_path_factory.mktemp("walk"), time.monotonic()
    command = ("-m", "tests.gpu", "--device", "cpu", "--size", "tiny", "--minutes", "3", "--output", str(folder))
    done = run(bare, *command)
    print(done.stdout, done.stderr[-3000:])
    return {"done": done, "folder": folder, "seconds": time.monotonic() - started}


@pytest.fixture
def found(walk) -> dict:
    """``gpu.json``."""
    assert walk["done"].returncode == 0, walk["done"].stderr[-3000:]
    return json.loads((walk["folder"] / "gpu.json").read_text())


# ---- the walk ----


def test_the_packages_are_not_there(bare):
    program = f"""
import importlib.metadata, importlib.util
for name in {MISSING}:
    assert importlib.util.find_spec(name) is None, name
try:
    raise SystemExit("installed: " + importlib.metadata.version("unigrpo"))
except importlib.metadata.PackageNotFoundError:
    pass
import unigrpo
print(unigrpo.__file__)
"""
    done = run(bare, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "unigrpo" / "__init__.py")


def test_every_stage_ends_in_time(walk, found):
    assert walk["seconds"] < 180
    assert found["finished"] and list(found["stages"]) == ["laws", "speed", "hot", "quickstart"]
    for name, stage in found["stages"].items():
        assert stage["error"] is None and stage["skipped"] is None and stage["seconds"] > 0, name
        assert not stage["found"].get("left_out") and not stage["found"].get("failed"), name
    assert found["command"] == {"size": "tiny", "device": "cpu", "minutes": 3.0}
    machine = found["machine"]
    assert {machine[name] for name in ("trl", "datasets", "math-verify")} == {"not installed"}
    assert machine["torch"] and machine["peft"] and machine["accelerate"] and machine["card"].startswith("no GPU")


def test_all_laws_hold(found):
    own = found["stages"]["laws"]["found"]["laws"]
    assert len(own) == len(laws.AGREEMENT) + len(laws_training.TRAINING_LAWS) == len({law["name"] for law in own})
    for law in own:
        assert law["passed"] and law["error"] is None and law["measured"] <= law["bound"], law


def test_speed_has_its_figures(found):
    own = found["stages"]["speed"]["found"]
    lines = {line["name"]: line for line in own["lines"]}
    beside = {"rollout T=0", "rollout T=1", "t2i, guidance", "update, LoRA, old pass", "update, LoRA, no old pass"}
    alone = {"rollout T=1, LoRA, autocast", "rollout T=1, LoRA, no autocast", "update, full, old pass"}
    assert lines.keys() == beside | alone | {"rollout T=0, dual cache", "rollout T=0, threshold 0.9"}
    for name, line in lines.items():
        assert line["rate"] > 0 and line["seconds_a_step"] > 0 and line["peak_gb"] > 0, name
        assert ("plain" in line) == (name in beside), name
        assert (line["ratio"] is None) == (name in alone), name
        if name in beside:
            assert line["ratio"] == pytest.approx(line["rate"] / line["plain"]["rate"])
        if line["tflops"] is not None:
            assert line["share"] == pytest.approx(line["tflops"] / own["peak_tflops"]) and line["share"] > 0
    assert [line["tflops"] for line in lines.values()].count(None) == 1, "of a cache the operations are not known"
    assert not lines["rollout T=0"]["extrapolated"], "all steps of the tiny schedule fit"
    memory = own["memory"]
    assert len(memory) == 2
    assert all(line["arithmetic_gb"] == pytest.approx(sum(line["parts_gb"].values())) for line in memory)


def test_operations_and_quickstart_have_their_figures(found):
    hot, own = found["stages"]["hot"]["found"], found["stages"]["quickstart"]["found"]
    for name in ("rollout step", "update"):
        rows = hot[name]["operations"]
        assert len(rows) == 10 and all(row["calls"] > 0 and 0 < row["share"] < 1 for row in rows)
        assert rows == sorted(rows, key=lambda row: -row["ms"])
    assert own["steps"] == own["of_steps"] and own["seconds_a_step"] > 0
    assert 0 < own["reward_first"] < 1 and 0 < own["reward_last"] < 1


def test_the_files_are_for_reading(walk, found, tmp_path):
    text = (walk["folder"] / "gpu.md").read_text()
    for part in (
        "## laws",
        "## speed",
        "## hot",
        "## quickstart",
        "laws hold",
        "It came to its end",
        "say nothing of a GPU",
    ):
        assert part in text, part
    lines = walk["done"].stdout.splitlines()
    assert len(lines) > 30 and all(line.startswith("[") for line in lines), "one line a measurement, nothing else"
    assert readme_table(walk["folder"] / "none.json") == NONE_MEASURED
    assert readme_table(walk["folder"] / "gpu.json") == NONE_MEASURED, "a CPU's"
    found["command"]["device"], found["machine"]["card"] = "cuda", "some card"
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    shown = readme_table(tmp_path / "gpu.json")
    assert "| rollout T=0 |" in shown and shown.startswith("some card, tiny model with random weights, torch ")


def test_help_says_what_to_bring(bare):
    done = run(bare, "-X", "importtime", "-m", "tests.gpu", "--help")
    assert done.returncode == 0
    for word in ("torch", "transformers", "accelerate", "peft", "jaxtyping", "--minutes 8", "not installed"):
        assert word in done.stdout, word
    assert "| torch\n" not in done.stderr, "help is there at once"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "cpu", "--output", "x"], "--size 8b is for --device cuda"),
        (["--minutes", "3"], "--output DIR is missing"),
        (["--minutes", "0", "--output", "x"], "must be more than 0"),
    ],
)
def test_what_cannot_be_is_said(bare, arguments, told):
    done = run(bare, "-m", "tests.gpu", *arguments)
    assert done.returncode == 2 and told in done.stderr

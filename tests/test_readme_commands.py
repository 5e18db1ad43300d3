"""Every command of every README works: each is read by its own program, and those that end soon are run from the wheel.

Commands of the READMEs, of CONTRIBUTING.md and of every ``--help`` are found by themselves. ``NOT_NOW`` has the ones that are not run
there, with the reason; the rest is run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from unigrpo.models.builtin import BUILTIN
from unigrpo.runs import cli
from unigrpo.runs.evaluate.tasks import TASKS
from unigrpo.runs.recipe import Recipe
from unigrpo.runs.sft import load_any_recipe

from .support import ROOT
from .support.command_checks import REST, Wrong, check, is_own, parsed
from .support.readme_commands import Command, pages, units
from .support.wheel import forking, run


NOT_NOW = (
    ("read", r"(pip|pre-commit|apt-get|sudo|git|cp|source|python3? -m venv)\b", "changes the machine; .ci/run makes environments"),
    ("read", r"(pytest|ruff|codespell|lint-imports|mypy|\.ci/)", "is, or is in, .ci/run or .ci/slow"),
    ("read", r"python -m tests\.(benchmarks|figures|gpu|quickstarts)\b", "for a clean checkout; tests/test_quickstarts.py, tests/test_gpu_command.py"),
    ("read", r"python -m tests\.mutants\b(?!.*--list)", "minutes; tests/mutants/test_mutants.py plants all of them"),
    ("read", r"python -m unigrpo\.toy\.making\b(?!\.decoder)", "writes into the package; tests/toy/test_making.py"),
    ("read", r"python recipes/prompts/", "writes into the checkout; tests/runs/test_recipes_images.py"),
    ("read", r"accelerate\b", "several processes; tests/training/test_launch.py"),
    ("read", r"vllm\b", "another package, and serves until Ctrl-C; tests/rewards/test_vllm.py"),
    ("read", r"unigrpo train .*vqa_score", "asks a server; tests/rewards/test_vllm.py"),
    ("read", r"python -m tests\.support\.vllm_servers\b", "gigabytes, into an environment of its own"),
    ("read", r"unigrpo app\b", "serves until Ctrl-C; tests/runs/test_app_browser.py"),
    ("read", r"(CUDA_VISIBLE_DEVICES=\d |UNIGRPO_REWARD_TOKEN=\S+ )*unigrpo serve-rewards\b", "serves until Ctrl-C; tests/runs/test_serve_rewards_processes.py"),
    ("read", r"unigrpo train .*http://127", "asks a server; tests/runs/test_serve_rewards_processes.py"),
    ("read", r"unigrpo lm-eval\b", "another package; tests/runs/test_lm_eval.py"),
    ("read", r"unigrpo .*(\bmy_|completions\.jsonl|runs/math)", "files of the reader's; tests/test_extending.py, tests/runs/test_score_file.py"),
    ("read", r"unigrpo (inspect|sample|evaluate) (?!runs/)[\w-]+/[\w.-]+", "asks the hub; tests/runs/test_inspect.py"),
    ("read", r"python -m unigrpo$", "only names what there is"),
    ("read", r"unigrpo .*use_cpu=false", "a GPU"),
    ("read", r"unigrpo check .*--memory 24", "ends with status 1, as its page says; tests/runs/test_check_memory.py"),
    ("read", r"unigrpo benchmark(?! .*--(seeds 0|table-only))", "hours; tests/toy/test_benchmark.py has a slice"),
    ("slow", r"unigrpo benchmark .*--seeds 0", "minutes"),
    ("slow", r"unigrpo sft quickstart_think_draw_sft", "a quarter of an hour"),
    ("read", r"unigrpo (train|sft) quickstart(?!_emoji)\w*(\.yaml)?( seed=\d| lora\.\S+| learning_rate=\S+| model\.path=runs\S+| output_dir=\S+)*$",
     "minutes; tests/runs/test_quickstart.py trains it from several seeds"),
    ("read", r"unigrpo sft unigrpo/toy/making/", "a quarter of an hour; tests/toy/test_making.py"),
    ("slow", r"unigrpo (reproduce toy$|evaluate quickstart_think_draw|agreement .*--limit 0)", "minutes"),
    ("slow", r"python -m (unigrpo\.toy\.estimators|tests\.rewards\.agreement)", "a minute"),
)  # fmt: skip
"""Of commands that begin so: only read by their program, or run among the slow tests; and why."""

STEPS = 30
"""Of training that are run now."""

TRAINING = (cli.run_train, cli.run_sft)
OF_A_RECIPE = (*TRAINING, cli.run_agreement, cli.run_evaluate)


def fate(own: Command) -> tuple[str, str]:
    """What is done with a command, ``"now"``, ``"slow"`` or ``"read"``, and why."""
    words = own.words
    if any(word in REST or is_own(word.rpartition("=")[2]) for word in words[1:]):
        return "read", "the reader's own words"
    found = next(((kind, why) for kind, pattern, why in NOT_NOW if re.match(pattern, " ".join(words))), None)
    if found is not None:
        return found
    if words[0] != "unigrpo":
        ours = words[0] == "python" and words[1] == "-m"
        return ("now", "") if ours else ("read", "no program of ours")
    try:
        arguments = parsed(cli.parsed, words[1:])
        return ("now", "") if arguments is None else _fate_of_recipes(arguments)
    except (Wrong, ValueError, OSError):
        return "read", "only names what there is, or cannot work, which a test says"


def _fate_of_recipes(arguments: argparse.Namespace) -> tuple[str, str]:
    """Recipes of models on the hub cannot run here, and training takes as long as it has steps."""
    words: list[str] = []
    tasks = (getattr(arguments, "tasks", None) or "").split(",")
    if away := [name for name in tasks if name in TASKS and not str(TASKS[name].path).startswith(BUILTIN)]:
        return "read", f"asks the hub for rows of {away}"
    if arguments.run in OF_A_RECIPE and not arguments.recipe.startswith(BUILTIN):
        words = [arguments.recipe, *arguments.overrides]
    elif arguments.run is cli.run_check and not (arguments.offline or arguments.list_code):
        words = arguments.recipes
    for recipe in (_loaded(word, tuple(one for one in words if "=" in one)) for word in words if "=" not in word):
        if not recipe.model.path.startswith((BUILTIN, "runs/")):
            return "read", f"asks the hub for {recipe.model.path}"
        if arguments.run in TRAINING and not 0 < recipe.config.get("max_steps", 0) <= STEPS:
            return "slow", "many steps"
    return "now", ""


@cache
def _loaded(recipe: str, overrides: tuple[str, ...]) -> Recipe:
    file = ROOT / recipe
    return load_any_recipe(file if file.is_file() else Path(recipe).stem, list(overrides))


def plan(unit: Sequence[Command]) -> list[tuple[Command, str, str]]:
    """What is done with each command of a unit; what reads a run that was left out, or is nowhere made, shares its fate."""
    planned: list[tuple[Command, str, str]] = []
    for own in unit:
        kind, why = fate(own)
        reads = own.words[1:2] != ("watch",) and any(re.match(r"(?!output_dir=).*\bruns/", word) for word in own.words)
        left = [before for before in planned if before[1] != "now"]
        if kind == "now" and reads and (left or not planned):
            kind, why = (left[-1][1], f"after `{left[-1][0].text}`") if left else ("read", "a run of the reader's")
        planned.append((own, kind, why))
    return planned


def to_run(kinds: tuple[str, ...], needed: str) -> list:
    """The units with a command of the kind ``needed``, each with the words of those of ``kinds``; the same words once."""
    found = {}
    for unit in units():
        planned = plan(unit)
        words = tuple(own.words for own, kind, _ in planned if kind in kinds)
        if any(kind == needed for _, kind, _ in planned) and words not in found:
            found[words] = unit[0].place
    return [pytest.param(words, id=place) for words, place in found.items()]


@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit[0].place)
def test_a_command_names_what_is_there(unit):
    page = pages()[unit[0].place.rpartition(":")[0]]
    before = re.findall(r"(?m)^# (\S+\.\w+)$", page)  # Files that it shows.
    for own in unit:
        check(own.words, shown=own.shown, before=before)
        before += own.words


def test_commands_are_found_on_every_kind_of_page():
    found = {own.place.rpartition(":")[0] for unit in units() for own in unit}
    assert {
        "CONTRIBUTING.md",
        "README.md",
        "tests/README.md",
        "unigrpo/runs/README.md",
        "unigrpo sample --help",
    } <= found
    assert len({page for page in found if page.endswith("--help")}) == len(cli.COMMANDS) + 1
    assert len([page for page in pages() if page.endswith(".md")]) >= 20


def test_every_reason_is_needed_and_the_rest_is_run():
    texts = [" ".join(own.words) for unit in units() for own in unit]
    assert [pattern for _, pattern, _ in NOT_NOW if not any(re.match(pattern, text) for text in texts)] == []
    assert len(to_run(("now",), "now")) > 20 and len(to_run(("now", "slow"), "slow")) > 5


def test_reasons_name_tests_that_there_are():
    named = {path for *_, why in NOT_NOW for path in re.findall(r"(?:tests/[\w/]+\.py|\.ci/\w+)", why)}
    assert len(named) > 8 and not {path for path in named if not (ROOT / path).is_file()}
    trained = {
        Path(own.words[2]).stem for unit in units() for own, _, why in plan(unit) if "test_quickstart.py" in why
    }
    text = (ROOT / "tests" / "runs" / "test_quickstart.py").read_text()
    assert len(trained) >= 3 and not {name for name in trained if f'"{name}"' not in text}


@pytest.mark.parametrize(
    "line",
    [
        "docker run unigrpo",
        "unigrpo tain quickstart",
        "unigrpo train quickstrat",
        "unigrpo train quickstart lerning_rate=1e-3",
        "unigrpo train quickstart learning_rate=fast",
        "unigrpo train quickstart_sft",
        "unigrpo sft quickstart",
        "unigrpo train quickstart --seed 1",
        "unigrpo check RECIPE --memry GB",
        "unigrpo keys noisng",
        "unigrpo sample builtin:nothing hello",
        "unigrpo evaluate builtin:arithmetic --tasks arithmetik",
        "unigrpo app warmth=1",
        "unigrpo benchmark --tasks poker",
        "unigrpo recipes copy nothing",
        "unigrpo reproduce toy --budget much",
        "unigrpo sft unigrpo/toy/making/nothing.yaml",
        "accelerate launch --config_file ddp_9.yaml -m unigrpo train RECIPE",
        "accelerate launch --config_file ddp_8.yaml -m unigrpo train quickstrat",
        "python -m tests.nothing",
        "python -m tests.mutants --lst",
        "python -m unigrpo.toy.making.policies make arithmetic",
        "python examples/nothing.py",
        "pytest -m fast",
        "pytest tests/algorithm/test_loss.py -k nosuchtest",
        "pip install unigrpo[nothing]",
        "pip install vllm>=0.1",
        "pip install -c nothing.txt -e .[dev]",
    ],
)
def test_a_command_that_cannot_work_is_found(line):
    with pytest.raises((Wrong, ValueError, OSError)):
        check(line.split(), shown=True)


@pytest.fixture(scope="module")
def runner(installed) -> Callable[[tuple[str, ...], Path], object]:
    """Runs the words of a command in a folder."""
    with forking(installed) as forked:

        def start(words: tuple[str, ...], folder: Path) -> object:
            program, *rest = words
            if program == "unigrpo":
                return forked(rest, folder)
            if rest[1].startswith("tests."):  # Of a checkout, with the packages of this environment.
                return subprocess.run([sys.executable, *rest], cwd=ROOT, check=True, capture_output=True, timeout=600)
            return run([str(installed / "python"), *rest], folder)

        yield start


@pytest.mark.installed
@pytest.mark.timeout(600)
@pytest.mark.parametrize("commands", to_run(("now",), "now"))
def test_what_ends_soon_runs(commands, runner, tmp_path):
    for words in commands:
        runner(words, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("commands", to_run(("now", "slow"), "slow"))
def test_what_takes_longer_runs(commands, runner, tmp_path):
    for words in commands:
        runner(words, tmp_path)

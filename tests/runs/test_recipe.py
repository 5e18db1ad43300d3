"""Recipes are read strictly: every mistake names the key, and numbers are numbers."""

from __future__ import annotations

import json

import pytest
import torch

from unigrpo.errors import RecipeError
from unigrpo.runs.build import ForTask, build_accuracy, build_config, build_dataset, build_lora, build_rewards
from unigrpo.runs.dataset_spec import DatasetSpec, load_rows
from unigrpo.runs.reach import code_of

from ..support.recipes import MINIMAL, recipe


@pytest.mark.smoke
def test_minimal_recipe_becomes_a_config_with_the_rewards_weights(tmp_path):
    args = build_config(recipe(tmp_path, MINIMAL, "learning_rate=5e-6", "num_generations=4"))
    assert args.reward_weights == [0.5]
    assert args.learning_rate == 5e-6 and isinstance(args.learning_rate, float)
    assert args.num_generations == 4
    assert args.beta == 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lerning_rate=1", "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ("model.pth=x", "unknown key 'pth'"),
        ("rewards.0.wieght=1", "did you mean 'weight'"),
        ("lora.rank=8", "lora: unknown key 'rank'"),
        ("lora=8", "lora must be a mapping"),
        ("datasets.0.task=txt", "task='txt': choose one of"),
        ("datasets={}", "'datasets' is missing"),
        ("model=somewhere", "model must be a mapping"),
        ("model.path=3", "model.path=3 must be of type str"),
        ("rewards.0.weight=heavy", "weight='heavy' must be of type"),
        ("datasets.0.limit=many", "limit='many' must be"),
        ("nonsense", "not of the form key=value"),
        ("datasets.7.limit=1", "'7' is not a place"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_mistakes_name_the_key(tmp_path, change, message):
    with pytest.raises(RecipeError, match=r".") as caught:
        recipe(tmp_path, MINIMAL, change)
    assert message in str(caught.value)


def test_config_errors_carry_the_recipes_name(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe\.yaml: num_generations=1 must be at least 2"):
        build_config(recipe(tmp_path, MINIMAL, "num_generations=1"))
    with pytest.raises(RecipeError, match="reward_weights belongs to the rewards"):
        build_config(recipe(tmp_path, MINIMAL, "reward_weights=[1]"))


def test_lora_section_switches_the_adapter_on_and_off(tmp_path):
    assert build_lora(recipe(tmp_path)) is None
    assert build_lora(recipe(tmp_path, MINIMAL, "lora.r=16")).r == 16
    assert build_lora(recipe(tmp_path, MINIMAL + "lora: {r: 4}\n", "lora=null")) is None


def test_rewards_take_arguments_and_unknown_names_are_errors(tmp_path):
    (reward,) = build_rewards(
        recipe(tmp_path, MINIMAL, "rewards.0.name=math_correctness", "rewards.0.args.timeout=1.5")
    )
    assert reward.keywords == {"timeout": 1.5}
    with pytest.raises(ValueError, match="think_format"):
        build_rewards(recipe(tmp_path, MINIMAL, "rewards.0.name=thinkformat"))


def test_files_are_renamed_limited_and_concatenated(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"q{i}", "answer": f"#### {i}", "prompt": "old"} for i in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DatasetSpec(path=str(file), column_map={"prompt": "question", "solution": "answer"}, task="text", limit=3)
    loaded = load_rows(spec)
    assert loaded[2] == {"prompt": "q2", "solution": "#### 2", "task": "text"}
    both = build_dataset([spec, DatasetSpec(path="builtin:arithmetic", split="test", limit=2)])
    assert len(both) == 5 and "####" in both[4]["solution"]
    with pytest.raises(RecipeError, match=r"column_map names \['q'\]"):
        load_rows(DatasetSpec(path=str(file), column_map={"prompt": "q"}))
    with pytest.raises(RecipeError, match="does not exist"):
        load_rows(DatasetSpec(path=str(tmp_path / "no.jsonl")))
    with pytest.raises(RecipeError, match="shipped sets are"):
        load_rows(DatasetSpec(path="builtin:algebra"))


def test_all_code_that_a_recipe_names_is_listed(tmp_path):
    named = recipe(tmp_path, MINIMAL, "policy=my_pkg.mod:Policy", "rewards.0.name=my_pkg.rewards:fn")
    assert code_of(named) == [
        "runs code: my_pkg.mod:Policy",
        "runs code: unigrpo.runs.accuracy:integer_match",
        "runs code: unigrpo.runs.accuracy:answer_match",
        "runs code: my_pkg.rewards:fn",
    ]
    parts = [
        "noising={name: my_noise:Tail, share: 0.5}",
        "task_overrides.t2i={sampler: my_draw:Fast}",
        "algorithm=my:one",
    ]
    measure = "accuracy={text: {name: my_measure:close, within: 2}}"
    listed = code_of(recipe(tmp_path, MINIMAL, *parts, measure))
    assert {"my_noise:Tail", "my_draw:Fast", "my:one", "my_measure:close"} <= {line.split()[-1] for line in listed}
    named.config["task_overrides"] = '{"text": {"surrogate": "my_code:run"}}'
    named.config["noising"] = '{"name": "my_noise:Tail", "share": 0.5}'
    assert {"runs code: my_code:run", "runs code: my_noise:Tail"} <= set(code_of(named))


def test_a_part_beside_the_recipe_wins_over_the_current_folders(tmp_path, monkeypatch):
    beside = tmp_path / "project"
    beside.mkdir()
    for folder, share in ((beside, 0.5), (tmp_path, 0.25)):
        (folder / "two_surrogates.py").write_text(
            f"def mine(log_ratio, logps, advantages, *, most={share}):\n    return advantages * most\n"
        )
    monkeypatch.chdir(tmp_path)
    args = build_config(recipe(beside, MINIMAL, "surrogate=two_surrogates:mine"))
    for _ in range(2):
        surrogate = args.for_task("text").choice("surrogate").build({})
        assert surrogate(torch.zeros(1), torch.zeros(1), torch.ones(1)).tolist() == [0.5]


def test_a_measure_takes_keys(tmp_path):
    (tmp_path / "measure_with_keys.py").write_text(
        "def close(completion, solution, *, within=0):\n    return abs(int(completion) - int(solution)) <= within\n"
    )
    mapping = "{name: 'measure_with_keys:close', within: 2}"
    for change in (f"accuracy={mapping}", f"accuracy={{text: {mapping}}}"):
        judge = build_accuracy(recipe(tmp_path, MINIMAL, change))["text"]
        assert (judge("5", "7"), judge("5", "8")) == (True, False)
    with pytest.raises(RecipeError, match=r"accuracy.text=.* or a mapping with a 'name' and keys"):
        recipe(tmp_path, MINIMAL, "accuracy={text: {within: 2}}")


def test_for_task_keeps_async_rewards_and_names():
    import asyncio
    from functools import partial

    async def later(completions, **_):
        return [float(len(text)) for text in completions]

    wrapped = ForTask(partial(later, bonus=1), "text")
    assert wrapped.__name__ == "later"
    scores = asyncio.run(wrapped(task=["t2i", "text"], prompts=["a", "b"], completions=["x", "xyz"]))
    assert scores == [None, 3.0]

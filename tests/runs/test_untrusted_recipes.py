"""Recipes from anywhere: bounded, with short errors, and what they would run is listed before it runs."""

from __future__ import annotations

import os
import time

import pytest

from unigrpo.errors import RecipeError
from unigrpo.runs.bounded_yaml import MAX_DEPTH, MAX_TEXT
from unigrpo.runs.cli import main
from unigrpo.runs.reach import code_of
from unigrpo.runs.recipe import load_recipe
from unigrpo.runs.recipe_file import parse_yaml

from ..support.recipes import MINIMAL, recipe


def bomb(levels: int, width: int, start: str) -> str:
    lines = [f"a0: &a0 {start}"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{inner}]")
    return "\n".join(lines)


def merge_bomb(levels: int) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}], k{level}: 1}}")
    return "\n".join(lines)


HOSTILE = {
    "billion laughs": (bomb(10, 10, "[lol, lol]"), "aliases are not read"),
    "merged laughs": (merge_bomb(10), "aliases are not read"),
    "a long alias": ("a: *" + "b" * 90_000, "aliases are not read"),
    "a list in itself": ("a: &a [*a]", "*a: write it out"),
    "a mapping in itself": ("a: &a {b: *a}", "*a: write it out"),
    "deep lists": ("[" * 5_000, "levels inside each other"),
    "deep mappings": ("{a: " * 5_000, "levels inside each other"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(300)), "levels inside each other"),
    "a number of many digits": ("seed: " + "9" * 5_000, "not valid YAML: ValueError"),
    "a large number": ("seed: " + "9" * 30, "too large a number"),
    "a large hexadecimal number": ("seed: 0x" + "f" * 99_000, "too large a number"),
    "sexagesimals": ("seed: 1" + ":59" * 33_000, "too large a number"),
    "a key twice": ("a: 1\na: 2", "given twice"),
    "a key that is a list": ("? [a, b]\n: 1", "a key must be a word"),
    "a key that is a mapping": ("{a: 1}: 2", "a key must be a word"),
    "no date": ("a: 2020-99-99", "not valid YAML"),
    "an empty number": ('a: !!int ""', "not valid YAML"),
    "no truth": ("a: !!bool perhaps", "not valid YAML"),
    "no time": ("a: !!timestamp never", "not valid YAML"),
    "no base 64": ("a: !!binary é", "not valid YAML"),
    "code": ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
    "several documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "a NUL": ("a: \0", "not valid YAML"),
    "too long": ("a: " + "b" * MAX_TEXT, "at most 100,000"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_end_in_a_short_error(name):
    text, message = HOSTILE[name]
    began = time.perf_counter()
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "where")
    assert message in str(caught.value) and len(str(caught.value)) < 1_500
    assert time.perf_counter() - began < 10


def test_the_deepest_text_that_is_read():
    assert parse_yaml("[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1), "where")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: \xe9", "cannot be read"),
        (b"", "a recipe is a mapping"),
        (b"[]", "mapping"),
    ],
)
def test_files_that_are_no_text(tmp_path, data, message):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(file))


def test_files_that_are_no_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(100 * 2**20)
    for path in (
        tmp_path,
        tmp_path / "pipe",
        "/dev/zero",
        tmp_path / "large.yaml",
        "x" * 5_000,
        "a\0b",
        tmp_path / "none",
    ):
        with pytest.raises(RecipeError):
            load_recipe(str(path))


@pytest.mark.parametrize(
    "change",
    [
        "policy=7", "policy=[a]", "accuracy=[a]", "accuracy=7", "accuracy.text=7", "datasets.0.column_map={a: [1]}",
        "datasets.0.column_map={1: a}", "rewards.0.args={1: 2}", "rewards=text", "datasets.²=1", "datasets.0.task=[a]",
        "datasets." + "9" * 5_000 + "=1", "lora" + ".a" * 100 + "=1", "seed=" + "9" * 5_000, "model=" + "x" * 5_000,
        "policy=&a [*a]", "=1", "." * 50 + "=1", "rewards.0.weight=!!int ''", "lora=[a]", "2001-01-01=1",
    ],
)  # fmt: skip
def test_overrides_and_types_end_in_a_short_error(tmp_path, change):
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, MINIMAL, change)
    assert len(str(caught.value)) < 6_000


def hostile_module(tmp_path, monkeypatch) -> str:
    (tmp_path / "marking.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('marked').touch()\nfn = len\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "marking:fn"


CODE = [
    "rewards.0.args={command: [touch, x], api_key: sk-1234}",
    "model_init_kwargs={trust_remote_code: true, attn_implementation: somebody/kernel}",
    "lora={r: 4, megatron_config: {}, megatron_core: elsewhere.core}",
    "report_to=wandb",
    "logging_dir=/elsewhere",
    "push_to_hub=true",
]


def test_everything_that_can_run_is_listed_without_an_import(tmp_path, monkeypatch, capsys):
    path = hostile_module(tmp_path, monkeypatch)
    found = code_of(
        recipe(
            tmp_path, MINIMAL, f"rewards.0.name={path}", f"policy={path}", *[c for c in CODE if "logging_dir" not in c]
        )
    )
    text = "\n".join(found)
    for part in (
        "marking:fn with args",
        "touch",
        "trust_remote_code",
        "somebody/kernel",
        "elsewhere.core",
        "wandb",
        "push_to_hub",
    ):
        assert part in text
    assert "sk-1234" not in text
    assert not (tmp_path / "marked").exists()
    assert main(["check", "--list-code", str(tmp_path / "recipe.yaml"), f"rewards.0.name={path}"]) == 0
    assert "runs code: marking:fn" in capsys.readouterr().out
    assert not (tmp_path / "marked").exists()
    # A check imports what it lists, as its help says.
    main(["check", "--offline", str(tmp_path / "recipe.yaml"), f"rewards.0.name={path}"])
    assert (tmp_path / "marked").exists()


def test_services_are_listed_with_their_urls_and_where_their_keys_come_from(tmp_path):
    lines = code_of(
        recipe(
            tmp_path,
            MINIMAL,
            "rewards=[{name: judge, args: {model: m}}, "
            "{name: judge, args: {model: m, base_url: 'https://judge.example/v1', api_key_env: JUDGE_KEY}}, "
            "{name: remote, args: {url: 'https://me:pw@a.example/score?token=abc', api_key_env: null}}, "
            "{name: remote, args: {url: 'https://b.example/', api_key_env: sk-1234}}, {name: remote}, "
            "{name: 'unigrpo.rewards._judge:JudgeReward', args: {model: m, base_url: \"http://a\\nb\"}}]",
        )
    )
    assert [line for line in lines if line.startswith("asks")] == [
        "asks a service: http://127.0.0.1:8000/v1 (judge), key from OPENAI_API_KEY",
        "asks a service: https://judge.example/v1 (judge), key from JUDGE_KEY",
        "asks a service: https://***@a.example/score?*** (remote), no key",
        "asks a service: https://b.example/ (remote), key from ***",
        "asks a service: no URL (remote), no key",
        r"asks a service: 'http://a\nb' (judge), key from OPENAI_API_KEY",
    ]


def test_every_reward_of_one_path_is_listed(tmp_path):
    lines = code_of(
        recipe(
            tmp_path,
            MINIMAL,
            "rewards=[{name: 'own:fn', args: {a: 1}}, {name: 'own:fn', args: {a: 2}}, {name: 'own:fn', args: {a: 2}}]",
        )
    )
    assert [line for line in lines if "own:fn" in line] == [
        "runs code: own:fn with args {'a': 1}",
        "runs code: own:fn with args {'a': 2}",
    ]


def test_a_plain_recipe_runs_only_what_the_package_ships(tmp_path):
    assert code_of(recipe(tmp_path)) == [
        "runs code: unigrpo.runs.accuracy:integer_match",
        "runs code: unigrpo.runs.accuracy:answer_match",
    ]

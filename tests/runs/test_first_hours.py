"""A CSV, a reward, a family of one's own, the first time: what is forgotten is said in one sentence, before a run."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, PreTrainedTokenizerFast

import unigrpo
from unigrpo import load_policy
from unigrpo.data.given import given_of
from unigrpo.errors import RecipeError
from unigrpo.models import MMaDAPolicy
from unigrpo.models.text_canvas import TextPolicy
from unigrpo.runs.cli import main
from unigrpo.runs.dataset_spec import DatasetSpec, prompt_rows
from unigrpo.training.demonstrations import check_given

from ..support.tiny import tiny_processor


SUMS = "question,result\n" + "".join(f"Tom has {n} cups and gets 3. Total?,{n + 3}\n" for n in range(20, 28))

REWARDS = """
def near(completions, result, *, scale=10.0, **_):
    return [max(0.0, 1 - abs(len(text) - gold) / scale) for text, gold in zip(completions, result, strict=True)]


def lost(completions, resultat, **_):
    return [float(str(gold) in text) for text, gold in zip(completions, resultat, strict=True)]
"""

RECIPE = """
model: {path: "builtin:arithmetic"}
datasets: [{path: sums.csv, column_map: {prompt: question}}]
eval_datasets: [{path: held.csv, column_map: {prompt: question, solution: result}}]
rewards: [{name: "sum_rewards:near"}]
output_dir: runs/sums
max_steps: 1
"""


@pytest.fixture(name="folder")
def sums_folder(tmp_path, monkeypatch):
    for name, text in {"sums.csv": SUMS, "held.csv": SUMS, "sum_rewards.py": REWARDS, "sums.yaml": RECIPE}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.smoke
def test_check_names_the_columns_that_rewards_will_not_find(folder, capsys):
    assert main(["check", "sums.yaml"]) == 0
    shown = capsys.readouterr()
    assert "reward sum_rewards:near gets None for 'result', which eval_datasets held.csv does not have" in shown.out
    assert "datasets sums.csv does not have" not in shown.out
    assert "\r" not in shown.err + shown.out and "examples/s" not in shown.err, "nobody watches a bar"
    assert main(["check", "sums.yaml", "rewards.0.name=sum_rewards:lost"]) == 1
    told = capsys.readouterr().out
    assert "reward 'sum_rewards:lost' reads 'resultat', which is no column of any dataset" in told
    assert "column_map: {resultat: result}" in told


def test_a_reward_that_fails_on_an_empty_column_is_told_which(folder, capsys):
    assert main(["train", "sums.yaml"]) == 2
    assert "it got None for 'result', which none of these rows has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("model=builtin:arithmetic", 'write {path: "builtin:arithmetic"}'),
        ("datasets=[sums.csv]", 'write {path: "sums.csv"}'),
        ("rewards=[sum_rewards:near]", 'write {name: "sum_rewards:near"}'),
    ],
)
def test_a_name_in_place_of_a_mapping_is_told_the_mapping(folder, key, cure, capsys):
    assert main(["train", "sums.yaml", key]) == 2
    assert cure in capsys.readouterr().err


def test_columns_are_renamed_at_once_and_to_one_name(folder):
    swapped = prompt_rows(DatasetSpec(path="sums.csv", column_map={"prompt": "question", "question": "result"}))
    assert swapped[0] == {"prompt": "Tom has 20 cups and gets 3. Total?", "question": 23}
    (folder / "ours.csv").write_text("prompt,solution\n4,What is 2 + 2?\n")
    swapped = prompt_rows(DatasetSpec(path="ours.csv", column_map={"prompt": "solution", "solution": "prompt"}))
    assert swapped[0] == {"prompt": "What is 2 + 2?", "solution": 4}
    twice = DatasetSpec(path="sums.csv", column_map={"prompt": "question", "solution": "result", "result": "result"})
    with pytest.raises(
        RecipeError, match=r"column_map gives 'result' several names, .*'solution', 'result'.*: a column has one"
    ):
        prompt_rows(twice)


def test_keys_say_their_least_value(capsys):
    assert main(["keys", "beta"]) == 0
    assert "beta: 0.01, at least 0\n" in capsys.readouterr().out


def test_an_option_in_place_of_a_prompt_is_refused(capsys):
    assert main(["sample", "builtin:arithmetic", "w", "block_length=4"]) == 2
    assert "'block_length=4' stands where prompts do: write --block-length 4" in capsys.readouterr().err
    assert main(["sample", "builtin:arithmetic", "a = 4", "--max-completion-length", "4", "--steps", "1"]) == 0


def test_a_whole_number_of_a_csv_is_an_answer():
    assert given_of({"prompt": "9+5", "completion": 14}, "row").answer == "14"
    check_given({"prompt": "9+5", "completion": 14}, "row")
    for other in (True, 1.5, None):
        with pytest.raises(ValueError, match="must be the text that is trained"):
            given_of({"prompt": "9+5", "completion": other}, "row")


def test_names_that_are_not_loaded_yet_are_completed():
    assert set(unigrpo.__all__) <= set(dir(unigrpo))


# ---- a family ----


class OwnPolicy(MMaDAPolicy):
    """A family that the library does not list."""


class Networkless(MMaDAPolicy):
    model_class = None


class WithATokenizer(TextPolicy):
    processor_class = PreTrainedTokenizerFast


@pytest.mark.parametrize("policy", [None, OwnPolicy])
def test_a_cards_code_opens_a_family_of_ones_own(make_trainer, monkeypatch, tmp_path, policy):
    trainer = make_trainer(max_steps=1, of_trainer={"policy": policy})
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    code = re.search(r"```python\n(.*?load_policy.*?)\n```", card, re.DOTALL)[1].replace("policy.generate", "str")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code, found)
    assert type(found["policy"].policy) is (policy or MMaDAPolicy)
    assert ("policy=" in code) == (policy is not None)


def test_what_a_family_lacks_is_one_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"Networkless opens no files: set Networkless.model_class to the class of the network"
    ):
        load_policy("builtin:arithmetic", policy=Networkless)
    config, tokenizer = BertConfig(vocab_size=150), tiny_processor().tokenizer
    with pytest.raises(
        ValueError, match=r"WithATokenizer.processor_class=.* must be derived from MMaDAProcessor: leave it out"
    ):
        WithATokenizer(config, tokenizer)
    with pytest.raises(ValueError, match="BertConfig has no mask_token_id, which TextPolicy reads: give it"):
        TextPolicy(config, tokenizer)
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[MASK]": 0, "a": 1}, unk_token="a")))
    with pytest.raises(
        ValueError, match=r"prompts with .*start_header_id.*, which the model's 2 embeddings do not hold"
    ):
        TextPolicy(BertConfig(vocab_size=2, mask_token_id=0), bare)

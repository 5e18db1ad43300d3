"""The harness itself with a shipped policy: the numbers are those of ``unigrpo evaluate``, likelihoods the exact bound."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from unigrpo.runs.cli import main
from unigrpo.runs.evaluate.command import evaluate_tasks
from unigrpo.samplers import Block
from unigrpo.toy.arithmetic import problems
from unigrpo.toy.exact import ExactLikelihood

from ..support.tiny_decoders import tiny_decoder


INSTALLED = importlib.util.find_spec("lm_eval") is not None
MISSING = "pip install 'unigrpo[lm-eval]'"
ROWS = 24

SUMS = """task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - name: answer
    filter:
      - {{function: regex, regex_pattern: "</think>(.*)"}}
      - {{function: take_first}}
"""
OPTIONS = """task: options
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def written_rows(folder) -> str:
    """Held-out sums; as options the right trace, and the one that forgets the carry or is off by ten."""
    lines = []
    for row in problems("test", ROWS):
        total, units = row["a"] + row["b"], "".join(str((row["a"] + step) % 10) for step in range(1, row["b"] + 1))
        options = [f"<think>{units}</think>{own}" for own in (total, total - 10)]
        lines.append(json.dumps({**row, "answer": str(total), "options": options}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    for name, text in (("sums", SUMS), ("options", OPTIONS)):
        (folder / f"{name}.yaml").write_text(text.format(rows=folder / "rows.jsonl"))
    return str(folder)


def harness_results(folder, model: str, tasks: str) -> dict:
    words = [
        "lm-eval",
        "--model_args",
        f"path={model},draws=4",
        "--tasks",
        tasks,
        "--include_path",
        written_rows(folder),
    ]
    assert main([*words, "--output_path", str(folder / "out"), "--batch_size", "8", "--device", "cpu"]) == 0
    (found,) = (folder / "out").rglob("results_*.json")
    return json.loads(found.read_text())["results"]


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=MISSING)
@pytest.mark.parametrize("model", ["builtin:arithmetic_trained", "builtin:arithmetic"])
def test_the_harness_gives_the_accuracy_of_evaluate(model, tmp_path):
    found = harness_results(tmp_path, model, "sums,options")
    rows = {"arithmetic": str(tmp_path / "rows.jsonl")}
    own = evaluate_tasks(model, ["arithmetic"], data=rows, output_dir=str(tmp_path / "own"))["tasks"]["arithmetic"]
    assert own["count"] == ROWS and found["sums"]["exact_match,answer"] == own["mean"]
    if model == "builtin:arithmetic_trained":
        assert own["mean"] >= 0.9 and found["options"]["acc,none"] >= 0.9


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=MISSING)
def test_likelihoods_are_the_exact_bound():
    from lm_eval.api.instance import Instance

    from unigrpo.algorithm.likelihood import score_tokens
    from unigrpo.runs.lm_eval import UniGRPOLM

    model = UniGRPOLM("builtin:arithmetic_trained", draws=2000, batch_size=200, device="cpu")
    row = problems("test", 1)[0]
    total = row["a"] + row["b"]
    canvas = model._canvas(row["prompt"], f" {total}")
    assert int(canvas.fill_mask.sum()) == 3

    def logps(hidden):
        several = canvas.take(torch.zeros(len(hidden), dtype=torch.int64))
        return score_tokens(model.pipe.model, model.pipe.policy, several, hidden, hidden).logps.detach()

    exact = ExactLikelihood.of(logps, canvas.fill_mask[0]).elbo()
    requests = [Instance("loglikelihood", {}, (row["prompt"], f" {own}"), 0) for own in (total, total)]
    (bound, _), again = model.loglikelihood(requests, disable_tqdm=True)
    assert bound == pytest.approx(exact, rel=0.03) and again[0] == bound  # Noise of the request alone.
    words = [*"0123456789", "<think>", "</think>"]
    alone = model.loglikelihood([Instance("loglikelihood", {}, (row["prompt"], own), 0) for own in words], True)
    surest = max(alone)[0]  # Of one token the bound is its log p.
    assert surest > -0.6 and [greedy for _, greedy in alone] == [logp == surest for logp, _ in alone]
    with pytest.raises(ValueError, match=r"loglikelihood_rolling .* is for models that write from left to right"):
        model.loglikelihood_rolling([])
    with pytest.raises(ValueError, match="leave out --apply_chat_template"):
        model.chat_template(True)


@pytest.mark.skipif(not INSTALLED, reason=MISSING)
def test_a_model_in_blocks_is_asked_block_by_block(tmp_path):
    """Greedy decoding finds its own answer, and lengths bring no block length that the model does not have."""
    from unigrpo.runs.lm_eval import UniGRPOLM

    model, policy = tiny_decoder("blocks")
    model.save_pretrained(tmp_path)
    policy.processor.save_pretrained(tmp_path)
    own = UniGRPOLM(str(tmp_path), draws=1, device="cpu", sampler="block")
    canvas = own._canvas("w1 w2 w3", "w5 w6 w7 w8 w9 w4")
    sampler = Block(steps=6, temperature=0.0, stop="never")
    blank = replace(canvas, ids=torch.where(canvas.fill_mask, policy.mask_token_id, canvas.ids))
    written = sampler(own.pipe.model, own.pipe.policy, blank, generators=[torch.Generator()]).canvas
    assert own._greedy(replace(canvas, ids=written.ids)) and not own._greedy(canvas)
    assert own._pipe(64, None).algorithms["text"].sampler.block_length is None


def test_without_the_harness_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["lm-eval", "--model_args", "path=builtin:arithmetic", "--tasks", "sums"]) == 2
    assert "pip install 'unigrpo[lm-eval]'" in capsys.readouterr().err
    assert main(["lm-eval"]) == 2 and "give --model_args path=MODEL and --tasks" in capsys.readouterr().err


@pytest.mark.skipif(not INSTALLED, reason=MISSING)
@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({}, None),
        ({"max_completion_length": 16, "steps": 16}, None),
        ({"steps": 16}, 32),
        ({"steps": 16, "block_length": 4}, 20),
    ],
)
def test_the_task_says_the_length_where_neither_the_command_nor_the_checkpoint_does(given, length):
    """A checkpoint's lengths hold together or not at all; with other steps they do not hold, and 256 positions would not fit."""
    from unigrpo.runs.lm_eval import UniGRPOLM

    own = UniGRPOLM("builtin:arithmetic", draws=1, device="cpu", **given)
    assert own._sampling({"max_gen_toks": 20}) == (length, None)

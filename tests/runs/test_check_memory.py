"""``unigrpo check --memory``: what its arithmetic follows, what it says, and the keys that it names."""

from __future__ import annotations

import re

import pytest
from transformers import CLIPModel

from unigrpo.errors import RecipeError
from unigrpo.models import MMaDAConfig, MMaDAForMaskedDiffusion
from unigrpo.models.magvit import MagvitV2
from unigrpo.rewards.imagereward import ImageReward
from unigrpo.runs.cli import main
from unigrpo.runs.memory import memory_of
from unigrpo.runs.memory_report import CHANGE_THE_RUN, _key, memory_report
from unigrpo.runs.recipe import load_recipe

from ..support.recipes import recipe
from ..support.tiny import tiny_model, tiny_processor
from .test_memory import nbytes, parts, tiny


PICTURES = """
model: {{path: {policy}}}
image_tokenizer: {tokenizer}
datasets: [{{path: {rows}, task: t2i}}]
rewards:
  - {{name: clip_score, args: {{model: {clip}}}}}
  - {{name: image_reward, args: {{model: {image_reward}, tokenizer: {image_reward}/bert, vision_heads: 3, batch_size: 2}}}}
output_dir: {out}
use_cpu: true
image_size: 64
per_device_train_batch_size: 8
"""


def drawing(tiny_models, tmp_path, *overrides: str):
    (tmp_path / "rows.txt").write_text("w1 w2\n")
    return recipe(
        tmp_path, PICTURES.format(rows=tmp_path / "rows.txt", out=tmp_path / "out", **tiny_models), *overrides
    )


def test_models_beside_the_policy_are_counted_where_they_are(tiny_models, tmp_path):
    """On the card all the while; offloaded, one at a time in their own phase; on the CPU, not at all."""
    tokenizer = MagvitV2.from_pretrained(tiny_models["tokenizer"])
    clip = CLIPModel.from_pretrained(tiny_models["clip"])
    scorer = ImageReward(
        str(tiny_models["image_reward"]), tokenizer=f"{tiny_models['image_reward']}/bert", vision_heads=3
    )
    sizes = [nbytes([*own.parameters(), *own.buffers()]) for own in (tokenizer, clip, scorer._load()._model)]
    plain = memory_of(drawing(tiny_models, tmp_path))
    counted = {part.name: part for part in plain.parts}
    assert counted["image tokenizer"].bytes == sizes[0] and counted["reward models"].bytes == sizes[1] + sizes[2]
    assert counted["image tokenizer"].phases == counted["reward models"].phases == counted["base weights"].phases
    assert counted["pictures"].phases == ("pictures",) and counted["rewards"].phases == ("rewards",)
    off = memory_of(drawing(tiny_models, tmp_path, "offload_image_tokenizer=true", "offload_reward_models=true"))
    counted = {part.name: part for part in off.parts}
    assert counted["image tokenizer"][1:4:2] == (sizes[0], ("pictures",))
    assert counted["reward models"][1:4:2] == (max(sizes[1:]), ("rewards",))
    for phase in ("rollout", "update"):
        assert plain.phases[phase] - off.phases[phase] == sum(sizes)
    on_cpu = [f"rewards.{number}.args.device=cpu" for number in (0, 1)]
    assert "reward models" not in parts(memory_of(drawing(tiny_models, tmp_path, *on_cpu)))
    guided = {part.name: part.how for part in plain.parts}["rollout"]
    assert guided.startswith("2 x 8 x 71 tokens")
    assert plain.notes == ["prompts of task 't2i' are counted with 50 tokens, as max_prompt_length is not set"]


@pytest.mark.smoke
def test_rows_and_lengths_follow_the_keys(tiny_path, tmp_path):
    def how(*overrides: str) -> dict[str, str]:
        return {part.name: part.how for part in memory_of(tiny(tiny_path, tmp_path, *overrides)).parts}

    assert how()["rollout"].startswith("6 x 96 tokens") and how()["update"].startswith("6 x 96 tokens")
    assert how("gradient_accumulation_steps=4")["rollout"].startswith("24 x 96 tokens")
    assert how("gradient_accumulation_steps=4", "rollout_batch_size=10")["rollout"].startswith("10 x 96 tokens")
    held_out = ["eval_datasets=[{path: 'builtin:arithmetic', limit: 4, task: text}]", "per_device_eval_batch_size=50"]
    assert how(*held_out)["rollout"].startswith("50 x 96 tokens")
    assert how(*held_out, "rollout_batch_size=20")["rollout"].startswith("20 x 96 tokens")
    few = ["per_device_train_batch_size=2", "num_generations=2"]
    assert how(*few)["update"].startswith("2 x 96") and how(*few, "algorithm=espo")["update"].startswith("4 x 96")
    assert how(*few, "algorithm=coupled_grpo")["update"].startswith("3 x 96")
    assert how("max_prompt_length=null")["update"].startswith("6 x 184 tokens")
    plain, twice = (parts(memory_of(tiny(tiny_path, tmp_path, *own))) for own in ([], ["guidance_scale=1.0"]))
    assert twice["rollout"] == pytest.approx(2 * plain["rollout"], rel=0.05) and twice["update"] == plain["update"]
    guided = how("guidance_scale=1.0")
    assert guided["rollout"].startswith("2 x 6 x 96") and guided["update"].startswith("6 x 96")
    assert how("guidance_scale=1.0", "guidance=both")["update"].startswith("2 x 6 x 96")


def test_a_model_that_cannot_run_without_weights_is_counted_by_its_weights(tiny_path, tmp_path, monkeypatch):
    def forward(self, **_):
        raise RuntimeError("reads a value")

    monkeypatch.setattr(MMaDAForMaskedDiffusion, "forward", forward)
    memory = memory_of(tiny(tiny_path, tmp_path, "lora={r: 3}"))
    assert parts(memory).keys() == {"base weights", "adapters", "gradients", "AdamW"}
    assert "activations are not counted (RuntimeError: reads a value)" in memory.notes
    lines, fits = memory_report(lambda more=(): tiny(tiny_path, tmp_path, "lora={r: 3}", *more), 8)
    assert fits and lines[-1].startswith("  weights and their training alone: ") and lines[-1].endswith(" of 8 GB")


def test_a_model_out_of_reach_needs_a_family(tmp_path):
    far = "Nobody/no-such-8B"
    with pytest.raises(
        RecipeError,
        match=r"model Nobody/no-such-8B is not reachable.*set policy to one of \[.*'llada', .*'mmada', .*\]",
    ):
        memory_of(tiny(far, tmp_path))
    assert parts(memory_of(tiny(far, tmp_path, "policy=mmada")))["base weights"] == 2 * 8_082_690_048
    memory = memory_of(tiny(far, tmp_path, "policy=llada"))
    assert parts(memory)["base weights"] == 2 * 8_015_581_184
    assert memory.notes == [f"model {far}: not reachable, counted by the sizes of llada as it was published"]


def checked(capsys, *words: str) -> tuple[int, str]:
    status = main(["check", *words])
    return status, capsys.readouterr().out


def test_check_says_what_does_not_fit_and_which_keys_to_turn(capsys):
    name = "math_mmada_8b_lora"
    status, said = checked(capsys, name, "--offline", "--memory", "24")
    assert status == 1 and f"{name}: FAILED, does not fit a card of 24 GB" in said
    assert re.search(r"base weights +16\.2  always +8,082,690,048 x 2 bytes", said)
    memory = memory_of(load_recipe(name))
    assert f"does not fit: {memory.phases['rollout'] / 1e9:.1f} GB of 24, in the rollout" in said
    keys = re.findall(r"^      (\S.*?) {2,}(\d+\.\d) of the (rollout|update)$", said, re.MULTILINE)
    assert [float(saved) for _, saved, _ in keys] == sorted((float(saved) for _, saved, _ in keys), reverse=True)
    assert {words.split("=")[0] for words, _, _ in keys} == {
        "model.load_in_4bit",
        "rollout_batch_size",
        "per_device_train_batch_size",
        "lora.r",
    }
    for words, saved, phase in keys:
        less = memory_of(load_recipe(name, words.split())).phases
        assert memory.phases[phase] - less[phase] == pytest.approx(float(saved) * 1e9, abs=6e7), words
    ((words, peak),) = re.findall(r"^      (\S.*): (\d+\.\d) GB, which fit$", said, re.MULTILINE)
    together = max(memory_of(load_recipe(name, words.split())).phases.values())
    assert together == pytest.approx(float(peak) * 1e9, abs=6e7) and together < 24e9
    for word in words.split():
        others = [own for own in words.split() if own != word]
        assert max(memory_of(load_recipe(name, others)).phases.values()) > 24e9, word


def test_check_says_what_fits_and_nothing_unasked(tiny_path, tmp_path, capsys):
    tiny(tiny_path, tmp_path)
    file = str(tmp_path / "recipe.yaml")
    status, said = checked(capsys, file)
    assert status == 0 and "memory" not in said and "GB" not in said
    status, more = checked(capsys, file, "--memory", "24", "max_completion_length=30")
    assert status == 0 and "fits: " in more and "x 102 tokens" in more
    assert more.startswith(said.splitlines()[0]) and set(said.splitlines()) <= set(more.splitlines())


def test_a_card_that_nothing_fits_is_told_so(tmp_path, capsys):
    shallow = MMaDAForMaskedDiffusion(MMaDAConfig(**{**tiny_model().config.to_dict(), "n_layers": 2}))
    shallow.save_pretrained(tmp_path / "policy")
    tiny_processor().save_pretrained(tmp_path / "policy")
    tiny(tmp_path / "policy", tmp_path)
    _, said = checked(capsys, str(tmp_path / "recipe.yaml"), "--memory", "0.0001", "lora.r=2")
    (words,) = re.findall(r"^      (\S.*): \S+ GB, which do not fit; share the weights", said, re.MULTILINE)
    # What changes the run is turned last, and here it is all turned.
    assert re.findall(r"(\S+?)=", words)[-1] == "lora.r" and "gradient_checkpointing=true" in words


@pytest.mark.parametrize("value", ["0", "-8", "inf", "nan", "24GB", "much"])
def test_a_card_has_a_number_of_gb(value, capsys):
    with pytest.raises(SystemExit) as done:
        main(["check", "quickstart", f"--memory={value}"])
    assert done.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        f"argument --memory: {value!r} is no memory of a card; give its GB, a number above 0 as in 24"
    )


def test_offline_a_missing_bitsandbytes_is_told_and_no_failure(tiny_path, tmp_path, capsys, monkeypatch):
    for module in ("unigrpo.models.quantization", "unigrpo.runs.check"):
        monkeypatch.setattr(f"{module}.is_bitsandbytes_available", lambda: False)
    tiny(tiny_path, tmp_path)
    words = [str(tmp_path / "recipe.yaml"), "model.load_in_4bit=true"]
    status, said = checked(capsys, *words, "lora.r=4")
    assert status == 1 and "need bitsandbytes" in said
    status, said = checked(capsys, *words, "lora.r=4", "--offline")
    assert status == 0 and "bitsandbytes: not installed, not checked" in said
    status, said = checked(capsys, *words, "--offline")
    assert status == 1 and "cannot be trained themselves" in said
    status, said = checked(capsys, *words, "lora.r=4", "model.load_in_8bit=true", "--offline")
    assert status == 1 and "give one of the two" in said


def test_a_key_of_one_task_changes_the_run_as_that_of_all_does():
    found = ["task_overrides.picture.image_size=256", "lora.r=32", "task_overrides.text.kv_cache=none"]
    assert [_key(own) in CHANGE_THE_RUN for own in found] == [True, True, False]

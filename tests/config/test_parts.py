"""Parts own their keys: fields, help, checks, warnings and overrides follow from them; what was given is remembered."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace

import numpy
import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from unigrpo.algorithm.noising import Draw, Noising, TrajectoryNoising
from unigrpo.algorithm.surrogates import PPO
from unigrpo.config.arguments import OWN_KEYS, UniGRPOConfig
from unigrpo.config.build import build_algorithm, build_estimator
from unigrpo.config.run_keys import RUN_KEYS
from unigrpo.config.task import TASK_KEYS
from unigrpo.parts import Key, check_keys, choose, key, keys_of
from unigrpo.types import CANVAS_TASKS

from ..support.configs import config


HERE = "tests.config.test_parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail(Noising):
    """The end of the answer hidden."""

    share: float = key(0.5, "share of the answer that is hidden", above=0, at_most=1)

    def draws(self, answer, k, num_iterations, num_samples, key):
        hidden = answer.completion & (answer.completion.cumsum(0) > answer.length * (1 - self.share))
        return [Draw(hidden=hidden, target=hidden, ratio=self.share) for _ in range(num_samples)]


def clipped(log_ratio, logps, advantages, *, most: float = 2.0):
    return log_ratio.exp().clamp(max=most) * advantages


def best_of(groups):
    return groups - groups.nan_to_num(-torch.inf).amax(dim=1, keepdim=True)


INSTANCE = PPO(epsilon=0.3)


def gentle():
    return {"noising": {"name": f"{HERE}:Tail", "share": 0.25}, "beta": 0.5, "t2i": {"beta": 0.1}}


# ---- one copy of every key ----


def test_the_fields_are_those_of_the_parts():
    """The block of fields in ``UniGRPOConfig`` is the one copy, for editors; None there says "not given"."""
    keys, found = {**RUN_KEYS, **TASK_KEYS}, {item.name: item for item in fields(UniGRPOConfig)}
    for name, about in keys.items():
        assert found[name].default is None, name
        declared = keys_of(UniGRPOConfig)[name].hint
        # A parser of the command line knows one type a key.
        hint = int if name == "image_size" else about.hint
        assert declared == hint | None, f"{name}: {declared} in UniGRPOConfig, {about.hint} in its part"
    inherited = {item.name for item in fields(TrainingArguments)}
    assert set(found) - inherited == {*keys, *OWN_KEYS, "task_overrides"} - inherited


def test_every_own_key_has_a_sentence_in_the_help():
    inherited = {item.name for item in fields(TrainingArguments)}
    text = "".join(HfArgumentParser(UniGRPOConfig).format_help().split())
    for item in fields(UniGRPOConfig):
        if item.name not in inherited:
            assert len(item.metadata["help"]) > 8, item.name
    for name, about in {**RUN_KEYS, **TASK_KEYS, **OWN_KEYS}.items():
        assert about.help, name
        # Lines are broken at spaces and hyphens.
        assert "".join(about.help.split())[:40] in text, name


# ---- keys ----


@pytest.mark.parametrize(
    ("about", "value", "told"),
    [
        (Key(name="x", hint=int, at_least=1), 0, "x=0 must be at least 1"),
        (Key(name="x", hint=int), 1.5, "x=1.5 must be a whole number"),
        (Key(name="x", hint=int), True, "x=True must be a whole number"),
        (Key(name="x", hint=float | None, above=0), "fast", "x='fast' must be a number, or none"),
        (TASK_KEYS["steps"], 10**18, r"steps=10{18} must lie in \[1, 65536\]"),
        (TASK_KEYS["eval_denoising_steps"], 10**18, r"must lie in \[1, 65536\]"),
        (TASK_KEYS["num_noise_samples"], 10**18, r"must lie in \[0, 10000\]"),
        (RUN_KEYS["num_iterations"], 10**18, r"must lie in \[1, 10000\]"),
        (Key(name="x", hint=float, above=0, at_most=1), 0.0, r"x=0.0 must lie in \(0, 1\]"),
        (Key(name="x", hint=float), float("nan"), "x=nan must be finite"),
        pytest.param(Key(name="x", hint=float), 10**400, "x=10+ must be finite", id="beyond a float"),
        (Key(name="x", hint=list[float]), [1.0, float("nan")], r"x=\[1.0, nan\]: each of the list must be finite"),
        (Key(name="x", hint=list[float | None]), [None, 10**400], "each of the list must be finite"),
        (Key(name="x", hint=str, choices=("near", "far")), "fare", "x='fare' is not valid: did you mean 'far'"),
        (Key(name="x", hint=bool), "yes", "x='yes' must be true or false"),
        (Key(name="x", hint=int | list[int]), "big", "x='big' must be a whole number or a list"),
    ],
)
def test_a_key_refuses_in_one_sentence(about, value, told):
    with pytest.raises(ValueError, match=told):
        about.read(value)


def test_numbers_as_text_are_read():
    assert Key(name="x", hint=float).read("1e-4") == 1e-4
    assert Key(name="x", hint=int | None).read("3") == 3
    assert Key(name="x", hint=float).read(2) == 2.0


# ---- parts ----


FORMS = {
    "path": f"{HERE}:Tail",
    "mapping": {"name": f"{HERE}:Tail", "share": 0.5},
    "JSON": json.dumps({"name": f"{HERE}:Tail"}),
    "class": Tail,
    "object": Tail(share=0.5),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_part_is_named_in_any_form(form):
    args = config(noising=FORMS[form])
    assert build_algorithm(args, "text").noising == Tail(share=0.5)
    json.dumps(args.to_dict()["noising"])


def test_a_parts_own_keys_are_its_alone():
    args = config(noising={"name": "block", "block_length": 4, "p_mask_prompt": 0.5}, block_length=8)
    algorithm = build_algorithm(args, "text")
    assert (algorithm.noising.block_length, algorithm.sampler.block_length) == (4, 8)
    assert algorithm.noising.p_mask_prompt == 0.5
    own = args.for_task("text").choice("noising")
    # The sampler reads the first too, and the second has no other reader.
    assert (own.name, own.own, args.for_task("text").p_mask_prompt) == ("block", {"block_length": 4}, 0.5)


def test_an_override_may_change_one_key_of_the_runs_part():
    args = config(
        noising={"name": f"{HERE}:Tail", "share": 0.25}, task_overrides={"t2i": {"noising": {"share": 0.75}}}
    )
    assert [build_algorithm(args, task).noising.share for task in CANVAS_TASKS[:3]] == [0.25, 0.25, 0.75]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"noising": {"name": f"{HERE}:Tail", "share": 2}}, r"noising.share=2.0 must lie in \(0, 1\]"),
        ({"task_overrides": {"mmu": {"noising": {"name": f"{HERE}:Tail", "share": 0}}}}, r"task_overrides.mmu.noising.share=0"),
        ({"noising": {"name": f"{HERE}:Tail", "shore": 1}}, "noising: .*Tail' has no key 'shore': did you mean 'share'"),
        ({"noising": f"{HERE}:Tale"}, "noising=.* cannot be imported: .* has no attribute 'Tale'. Did you mean"),
        ({"noising": {"share": 0.5}}, "noising: 'structured' has no key 'share'"),
        ({"surrogate": "ppp"}, "surrogate='ppp' is not valid: did you mean 'ppo'"),
        ({"surrogate": {"name": f"{HERE}:clipped", "most": "x"}}, "surrogate.most='x' must be a number"),
        ({"surrogate": lambda *given: 0.0}, "surrogate=.*lambda.* which a saved run can find again"),
        ({"algorithm": f"{HERE}:Tail"}, "algorithm=.* it must be a function that gives a mapping"),
        ({"algorithm": {"name": "unigrpo", "betta": 1}}, "algorithm 'unigrpo': key='betta' .* did you mean 'beta'"),
        ({"reduce": f"{HERE}:clipped"}, "reduce='.*clipped' must be a class that says whether it mixes draws"),
        ({"noising": f"{HERE}:clipped"}, "noising='.*clipped' must be a class derived from Noising"),
        ({"surrogate": f"{HERE}:INSTANCE"}, "surrogate=.* is an object of class PPO; a part is a class or a function"),
        ({"noising": 3}, "noising=3 must be a name"),
        ({"algorithm": ["espo"]}, "algorithm=.'espo'. must be a name"),
        ({"task_overrides": {"t2i": {"noising": " {share"}}}, "task_overrides.t2i.noising=.* is not JSON"),
        ({"eval_sampler": "nope"}, "eval_sampler='nope' is not valid"),
        ({"eval_sampler": {"name": "semi_autoregressive", "steps": -7}}, r"eval_sampler.steps=-7 must lie in \[1, 65536\]"),
        ({"eval_sampler": {"temperature": 0.5}}, "eval_sampler.temperature is not read: .* at eval_temperature"),
        ({"image_size": [True, True]}, "image_size=.True, True.: each of the list must be a whole number"),
        ({"reward_weights": ["x"]}, "reward_weights=.'x'.: each of the list must be a number"),
        ({"given_keys": 3}, "given_keys=3 is written by the config itself"),
        ({"delta": float("inf")}, "delta=inf must be finite"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_is_one_sentence(values, told):
    with pytest.raises((ValueError, TypeError), match=told):
        config(**values)


def test_functions_are_parts_with_their_keywords_as_keys():
    args = config(surrogate={"name": f"{HERE}:clipped", "most": 1.5}, advantage_estimator=f"{HERE}:best_of")
    value = build_algorithm(args, "text").loss.surrogate(torch.tensor([2.0]), torch.zeros(1), torch.tensor([3.0]))
    assert value.tolist() == [4.5]
    assert build_estimator(args)(torch.tensor([[1.0, 3.0]])).tolist() == [[-2.0, 0.0]]


def test_a_preset_is_a_path_or_a_mapping():
    args = config(algorithm=f"{HERE}:gentle")
    assert [args.for_task(task).beta for task in CANVAS_TASKS[:3]] == [0.5, 0.5, 0.1] and args.beta is None
    assert build_algorithm(args, "text").noising.share == 0.25
    named = config(algorithm={"name": "espo", "beta": 0.25})
    assert (named.beta, named.num_iterations, named.algorithm_name) == (0.25, 8, "espo")


def test_keys_of_a_part_that_nothing_takes_are_told():
    overrides = {task: {"noising": "full"} for task in CANVAS_TASKS[:3]}
    with pytest.warns(UserWarning, match=r"noising.share=0.25 \(noising '.*Tail'\)"):
        config(noising={"name": f"{HERE}:Tail", "share": 0.25}, task_overrides=overrides)
    with pytest.warns(UserWarning, match=r"draw_coupling='antithetic' \(noising 'random'\)"):
        config(noising=f"{HERE}:Tail", draw_coupling="antithetic")


def test_a_part_checks_itself():
    with pytest.raises(ValueError, match=r"share=2.0 must"):
        Tail(share=2)
    with pytest.raises(ValueError, match="trajectory_shrink=0 must"):
        TrajectoryNoising(trajectory_shrink=0)
    check_keys(PPO())
    assert choose("noising", f"{HERE}:Tail", {}).part is Tail


# ---- a part's keys are the task's ----


OWNED = {
    "the likelihood's temperature": ({"sampler": {"name": "semi_autoregressive", "temperature": 0.7}}, ("temperature", 0.7)),
    "the other end of the range": ({"surrogate": PPO(epsilon=0.3)}, ("epsilon_high", 0.3)),
    "a value that is the part's default": ({"algorithm": "diffu_grpo", "surrogate": PPO()}, ("epsilon", 0.2)),
    "what is averaged": ({"noising": {"name": "random", "weighting": "inverse_probability"}}, ("length_normalization", "completion")),
    "no guidance": ({"sampler": {"name": "semi_autoregressive", "guidance_scale": 2.0}, "guidance": "none"}, ("guidance_scale", 0.0)),
    "an override": (
        {"sampler": {"name": "semi_autoregressive", "temperature": 0.7}, "task_overrides": {"text": {"temperature": 0.5}}},
        ("temperature", 0.5),
    ),
    "a mapping without a name": ({"algorithm": "espo", "noising": {"draw_coupling": "stratified"}}, ("noising", "random")),
}  # fmt: skip


@pytest.mark.parametrize("case", OWNED)
def test_what_a_mapping_says_holds_for_the_whole_task(case):
    values, (name, value) = OWNED[case]
    args = config(**values)
    own = args.for_task("text")
    assert getattr(own, name) == value
    algorithm = build_algorithm(args, "text")
    for part in (algorithm.sampler, algorithm.noising, algorithm.loss.surrogate):
        assert getattr(part, name, value) == value


def test_keys_in_a_mapping_are_checked_like_flat_ones():
    for sampler, told in (
        ("temperature", "temperature=0 makes every answer"),
        ("kv_cache", "kv_cache='dual' would replay"),
    ):
        value = {"temperature": 0.0, "kv_cache": "dual"}[sampler]
        with pytest.raises(ValueError, match=told):
            config(sampler={"name": "semi_autoregressive", sampler: value}, torch_compile_mode="reduce-overhead")


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd(Noising):
    """Keys of names that mean something else elsewhere, or have another default there."""

    guidance: float = key(0.1, "no guidance at all")
    choice: int = 3
    block_length: int = key(8, "another default than the sampler's")

    def draws(self, answer, k, num_iterations, num_samples, key):
        return []


def test_names_that_mean_something_else_elsewhere():
    def built(**values):
        noising = build_algorithm(
            config(noising={"name": f"{HERE}:Odd", **values.pop("own", {})}, **values), "text"
        ).noising
        return noising.guidance, noising.choice, noising.block_length

    assert built() == (0.1, 3, 8)
    assert built(own={"guidance": 0.5}, block_length=4) == (0.5, 3, 4)


def sloppy(groups, *, seed: int = 7, scale):
    return groups * scale + seed


def test_an_estimator_takes_its_own_keys_alone():
    args = config(advantage_estimator={"name": f"{HERE}:sloppy", "scale": 2.0})
    assert build_estimator(args)(torch.ones(1)).tolist() == [9.0]
    with pytest.raises(ValueError, match=r"advantage_estimator=.*sloppy' needs 'scale': give it a default, or write"):
        config(advantage_estimator=f"{HERE}:sloppy")
    assert (
        config(algorithm="wd1", advantage_estimator={"advantage_temperature": 2.0}).advantage_estimator["name"]
        == "softmax"
    )


def test_a_users_file_may_import_for_a_type_checker_alone(tmp_path, monkeypatch):
    (tmp_path / "typed_part.py").write_text(
        "from __future__ import annotations\n\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from torch import Tensor\n\n\n"
        "def plain(log_ratio: Tensor, logps: Tensor, advantages: Tensor, *, most: float = 2.0) -> Tensor:\n    return advantages\n"
    )
    monkeypatch.chdir(tmp_path)
    assert config(surrogate={"name": "typed_part:plain", "most": 1.0}).for_task("text").surrogate["most"] == 1.0


def test_values_of_other_types_are_read():
    args = config(image_size=(64, 128), num_generations=numpy.int64(8), reward_weights=(1, 2), reward_timeout="1e3")
    assert (args.image_size, args.num_generations, args.reward_timeout) == ([64, 128], 8, 1000.0)


# ---- what was given ----


GIVEN = {
    "the preset's own ratio": (
        {"algorithm": "coupled_grpo", "mask_ratio_min": 0.2, "task_overrides": {"text": {"noising": "random"}}},
        ("mask_ratio_min", 0.2, 0.0),
    ),
    "the preset's own number of draws": (
        {"algorithm": "random_masking", "num_noise_samples": 2, "task_overrides": {"text": {"noising": "structured"}}},
        ("num_noise_samples", 2, 1),
    ),
    "the base's own length": (
        {
            "length_normalization": "masked",
            "task_overrides": {"text": {"weighting": "inverse_probability", "reduce": "per_token"}},
        },
        ("length_normalization", "masked", "completion"),
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("case", GIVEN)
def test_a_value_that_equals_a_default_was_given_all_the_same(case):
    values, (name, given, otherwise) = GIVEN[case]
    assert getattr(config(**values).for_task("text"), name) == given
    values = {key: value for key, value in values.items() if key != name}
    assert getattr(config(**values).for_task("text"), name) == otherwise


@pytest.mark.parametrize("case", GIVEN)
def test_saved_arguments_remember_what_was_given(case):
    values, (name, given, otherwise) = GIVEN[case]
    saved = json.loads(config(**values).to_json_string())
    own = {
        key: saved[key] for key in (*TASK_KEYS, *RUN_KEYS, "algorithm", "task_overrides", "given_keys", "filled_keys")
    }
    assert getattr(config(**own).for_task("text"), name) == given
    without = json.loads(config(**{key: value for key, value in values.items() if key != name}).to_json_string())
    own = {key: without[key] for key in own}
    assert getattr(config(**own).for_task("text"), name) == otherwise


def test_what_is_changed_later_was_given_too():
    args = config(algorithm="espo")
    assert args.given_keys == [] and args.beta == 3e-3
    args.beta = 0.5
    assert args.for_task("mmu").beta == 0.5
    changed = replace(config(algorithm="espo"), beta=0.25, generation_batch_size=None)
    assert changed.for_task("text").beta == 0.25 and changed.given_keys == ["beta"]
    assert changed.for_task("text").num_noise_samples == 4


def again(args, **changes):
    return replace(args, generation_batch_size=None, **changes)


def test_what_was_filled_in_follows_a_change():
    assert again(config(epsilon=0.3), epsilon=0.4).epsilon_high == 0.4
    assert again(config(guidance="none"), guidance="rollout").for_task("t2i").guidance_scale == 3.5
    espo, other = again(config(), algorithm="espo"), config(algorithm="espo")
    assert espo.given_keys == [] and espo.for_task("mmu") == other.for_task("mmu")
    assert again(config(importance_sampling_level="sequence"), importance_sampling_level="token").epsilon == 0.2
    gdpo = config(algorithm="gdpo", importance_sampling_level="token")
    assert (gdpo.epsilon, again(gdpo, importance_sampling_level=None).epsilon) == (0.2, 0.5)


def test_a_script_parses_every_kind_of_key():
    line = '--output_dir x --use_cpu true --beta 1e-3 --noising random --sampler {"name":"semi_autoregressive","steps":16}'
    (args,) = HfArgumentParser(UniGRPOConfig).parse_args_into_dataclasses(
        [
            *line.split(),
            "--task_overrides",
            '{"t2i": {"noising": "full"}}',
            "--report_to",
            "none",
            "--algorithm",
            "espo",
        ]
    )
    assert (args.beta, args.noising, args.algorithm) == (1e-3, "random", "espo")
    assert args.for_task("text").steps == 16 and args.for_task("t2i").noising == "full"

"""Fine-tuning on given answers: the formula, the laws of division and resume, held-out numbers, and what is refused."""

from __future__ import annotations

import itertools
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import unigrpo.training.given_step as step_module
from unigrpo import MaskedDenoisingConfig, load_policy
from unigrpo.errors import Interrupted, NonFiniteError
from unigrpo.training import batches
from unigrpo.training.batches import Unit
from unigrpo.training.given_step import given_step, noised, unit_sums, units_of
from unigrpo.training.held_out_loss import bound_draw

from ..support.divisions import distance
from ..support.given_runs import MIXED, PICTURES, TEXT, THOUGHTS, divided_run, given_trainer, numbers
from ..support.laws import gradients, weights
from ..support.tiny import tiny_model


# ---- the formula ----


def full_logits(trainer, row):
    """-log p of every token of a noised row from all of its logits, over the whole vocabulary."""
    mask = trainer.policy.mask_token_id
    ids = row.ids.masked_fill(row.hidden[0, 0], mask)[None]
    logits = trainer.model(input_ids=ids, attention_mask=row.attention_mask[None]).logits
    return -logits[0].float().log_softmax(-1).gather(1, row.ids[:, None]).squeeze(1)


@pytest.mark.smoke
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_steps_loss_and_gradient_are_the_formula_with_full_logits(tmp_path, accumulation):
    """MMaDA's Mixed-CoT losses written out: each task over its own rows, then the coefficients."""
    trainer = given_trainer(
        tmp_path, MIXED, per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation
    )
    trainer.model.eval()
    given = trainer._given(0)
    total = sum(trainer._unit_loss(trainer.model, given, unit) for units in given.micro_batches for unit in units)
    total.backward()
    own = gradients(trainer.model)
    trainer.model.zero_grad()
    tasks, rows = ("text", "mmu", "t2i", "r2i"), given.experiences
    sums, counts = dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 0)
    for row in rows:
        costs, hidden, target = full_logits(trainer, row), row.hidden[0, 0], row.target[0, 0]
        if row.task == "t2i":
            assert int(target.sum()) == int(hidden.sum()) + 2
            sums["t2i"], counts["t2i"] = sums["t2i"] + costs[target].sum(), counts["t2i"] + int(target.sum())
            continue
        p = 1 / (float(row.weight.max()) * int(row.completion_mask.sum())) if bool(hidden.any()) else 1.0
        sums[row.task] = sums[row.task] + costs[hidden].sum() / (p * int(row.completion_mask.sum()))
        counts[row.task] += 1
    expected = sum({"text": 0.5, "mmu": 0.5}.get(task, 1.0) * sums[task] / counts[task] for task in sums)
    assert min(counts.values()) > 0
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    assert distance(own, gradients(trainer.model)) < 1e-4


def test_captions_are_dropped_with_their_chance_and_only_captions(tmp_path):
    trainer = given_trainer(tmp_path, MIXED, caption_dropout=0.3)
    special = trainer.policy.config.special_token_ids
    written = trainer.writer.write(PICTURES[0], "row")
    lengths = [len(noised(trainer.writer, written, ("test", key), 0)[0].ids) for key in range(300)]
    dropped = sum(length < max(lengths) for length in lengths)
    assert dropped == pytest.approx(90, abs=4 * math.sqrt(300 * 0.21))
    assert min(lengths) == max(lengths) - 2
    question = trainer.writer.write(PICTURES[1], "row")
    assert {len(noised(trainer.writer, question, ("test", key), 0)[0].ids) for key in range(40)} == {24 + 16}
    assert int(written.canvas.ids[0, written.marks][0]) == special["soi"]


# ---- which rows, which noise ----


def test_every_row_comes_once_an_epoch_in_a_new_order_and_is_noised_anew_each_time(tmp_path):
    """Of what the model is given: twelve rows, two a step, three epochs."""
    trainer = given_trainer(tmp_path, per_device_train_batch_size=2, max_steps=18)
    seen, original = [], trainer._unit_loss

    def watched(model, given, unit):
        if (trainer._micro_step, given) not in [(own[0], own[1]) for own in seen]:
            seen.append((trainer._micro_step, given))
        return original(model, given, unit)

    trainer._unit_loss = watched
    trainer.train()
    rows = [tuple(row.ids.tolist()) for _, given in seen for row in given.experiences]
    epochs = [rows[start : start + 12] for start in (0, 12, 24)]
    assert len(rows) == 36 and all(len(set(epoch)) == 12 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    masks = {tuple(row.hidden[0, 0].tolist()) for _, given in seen for row in given.experiences}
    assert len(masks) > 30


def test_rows_of_a_step_have_noise_of_their_own(tmp_path):
    """Also where they are the same row."""
    given = given_trainer(tmp_path, TEXT[:1])._given(0)
    assert len({tuple(row.hidden[0, 0].tolist()) for row in given.experiences}) > 5


@pytest.mark.parametrize(("ranks", "micro_steps"), [(2, 1), (4, 2), (8, 1)])
def test_which_rows_and_which_noise_no_division_changes(tmp_path, ranks, micro_steps):
    """The rows of all processes, one after the other, are those of one process."""
    trainer = given_trainer(tmp_path, MIXED)

    def rows(rank, ranks, micro_steps):
        place = replace(trainer._place(), rank=rank, ranks=ranks, gather=lambda own: own)
        division = {"rows_per_batch": 8 // ranks // micro_steps, "micro_steps": micro_steps}
        return given_step(trainer.writer, trainer.train_dataset, trainer._mixture, 3, place, seed=0, **division)

    alone = rows(0, 1, 1).experiences
    parts = [row for rank in range(ranks) for row in rows(rank, ranks, micro_steps).experiences]
    assert len(parts) == len(alone) == 8 and len({row.task for row in alone}) > 1
    for own, other in zip(parts, alone, strict=True):
        assert own.task == other.task and torch.equal(own.ids, other.ids) and torch.equal(own.hidden, other.hidden)
        assert torch.equal(own.weight, other.weight)


def test_the_order_of_rows_in_a_step_changes_nothing(tmp_path):
    """Dealt to micro-batches by length, as a run does, backwards, and by chance."""
    trainer = given_trainer(tmp_path, MIXED, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    given, found = trainer._given(0), []
    for order in (None, [*range(8)][::-1], [3, 0, 6, 1, 7, 4, 2, 5]):
        dealt = [] if order is None else [order[start : start + 2] for start in range(0, 8, 2)]
        if order is not None:
            given = replace(given, micro_batches=units_of(given.experiences, dealt, trainer.policy, trainer._place()))
        trainer.model.zero_grad()
        total = sum(trainer._unit_loss(trainer.model, given, unit) for units in given.micro_batches for unit in units)
        total.backward()
        found.append((total.item(), gradients(trainer.model)))
    for total, own in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-5)
        assert distance(own, found[0][1]) < 1e-4


# ---- division, resume ----


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
def test_micro_batches_change_nothing(tmp_path, batch, accumulation):
    whole = divided_run(0, str(tmp_path / "whole"), 8, 1)
    parts = divided_run(0, str(tmp_path / "parts"), batch, accumulation)
    assert distance(parts["weights"], whole["weights"]) < 1e-4
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    assert distance(whole["weights"], weights(tiny_model())) > 1e-3


@pytest.mark.parametrize("lora", [False, True])
def test_a_resume_inside_an_epoch_is_the_uninterrupted_run(tmp_path, lora):
    settings = {"lora": lora, "max_steps": 5, "per_device_train_batch_size": 4, "lr_scheduler_type": "linear"}
    whole = given_trainer(tmp_path / "whole", **settings)
    whole.train()
    first = given_trainer(tmp_path / "run", **settings, save_strategy="steps", save_steps=2)
    first.train()
    resumed = given_trainer(tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(own, weights(whole.model)[name]) for name, own in weights(resumed.model).items())
    assert torch.equal(numbers(resumed), numbers(whole))


class Interrupt(TrainerCallback):
    """Ctrl-C during step 2."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_the_last_whole_step_and_the_run_goes_on(tmp_path):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    whole = given_trainer(tmp_path / "whole", **settings)
    whole.train()
    stopped = given_trainer(tmp_path / "run", callbacks=[Interrupt()], **settings)
    with pytest.raises(Interrupted, match="SIGINT after step 1"):
        stopped.train()
    resumed = given_trainer(tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(own, weights(whole.model)[name]) for name, own in weights(resumed.model).items())
    assert torch.equal(numbers(resumed), numbers(whole))


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path):
    model = tiny_model()
    trainer = given_trainer(tmp_path, model=model, max_steps=2)
    with torch.no_grad():
        model.get_output_embeddings().weight[51] = math.inf
    with pytest.raises(NonFiniteError, match=r"sft loss .* of the given answer"):
        trainer.train()


# ---- held-out numbers ----


def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary(tmp_path):
    """The bound is exact for it at every draw, so its error over rows is 0."""
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    found = given_trainer(tmp_path, MIXED, model=model, eval_rows=[*TEXT, *PICTURES, *THOUGHTS]).evaluate()
    for task in ("text", "mmu", "t2i", "r2i"):
        assert found[f"eval_{task}_nats_per_token"] == pytest.approx(math.log(272), abs=1e-4)
        assert found[f"eval_{task}_nats_per_token_se"] == pytest.approx(0, abs=1e-4)
    assert found["eval_t2i_loss"] == pytest.approx(math.log(272), abs=1e-4)
    total = (
        0.5 * found["eval_text_loss"] + 0.5 * found["eval_mmu_loss"] + found["eval_t2i_loss"] + found["eval_r2i_loss"]
    )
    assert found["eval_loss"] == pytest.approx(total)


def test_the_bound_is_the_mean_over_all_masks(tmp_path):
    """Enumeration: sum over l of 1/n times the mean over masks of l tokens of (n / l) sum -log p; four standard errors."""
    trainer = given_trainer(tmp_path, train_padding="none")
    written, model, policy = trainer.writer.write(TEXT[1], "row"), trainer.model.eval(), trainer.policy
    places = written.trained.nonzero().squeeze(1)
    n, exact, values = len(places), 0.0, []
    assert n == 3

    def cost(hidden, weight):
        row, _ = noised(trainer.writer, written, ("test",), 0)
        row.hidden, row.target, row.weight = hidden[None, None], hidden[None, None], weight[None, None].float()
        with torch.no_grad():
            return float(unit_sums(model, policy, [row], Unit((0,), 0), "cpu")[0])

    for count in range(1, n + 1):
        masks = list(itertools.combinations(places.tolist(), count))
        for chosen in masks:
            hidden = torch.zeros_like(written.trained)
            hidden[list(chosen)] = True
            exact += cost(hidden, hidden * (n / count)) / len(masks) / n
    for key in range(60):
        drawn = [bound_draw(written.trained, draw, 3, ("test", key, draw)) for draw in range(3)]
        assert sorted(int(own.hidden.sum()) for own in drawn) == [1, 2, 3]
        values.append(sum(cost(own.hidden, own.weight) for own in drawn) / 3)
    spread = torch.tensor(values)
    assert abs(float(spread.mean()) - exact) < 4 * float(spread.std()) / math.sqrt(60)


def test_held_out_numbers_depend_on_nothing_but_rows_and_weights(tmp_path):
    """On no seed, no batch, and no dropout of the training that they interrupt."""

    def noisy():
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
            for name, own in model.named_parameters():
                own.data.normal_(std=0.05) if "lora_B" in name else None
        return model.train()

    settings = {"eval_rows": [*TEXT[:5], *PICTURES[:4]], "disable_dropout": False}
    trainer = given_trainer(tmp_path, MIXED, model=noisy(), per_device_eval_batch_size=7, **settings)
    another = given_trainer(tmp_path, MIXED, model=noisy(), per_device_eval_batch_size=2, seed=9, **settings)
    trainer.model.train(), another.model.train()
    state = torch.get_rng_state()
    one, other = trainer.evaluate(), another.evaluate()
    for found in (one, other):
        found.pop("eval_runtime"), found.pop("epoch", None)
    assert one == pytest.approx(other, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state) and trainer.model.training


def test_the_chat_template_of_given_answers_reads_its_arguments(tmp_path):
    row = {"messages": [*({"role": role, "content": "w1"} for role in ("user", "assistant") * 2)]}
    trainer = given_trainer(
        tmp_path, [row], chat_template_kwargs='{"bos_token": "w9"}', train_turns="all", max_length=80
    )
    (own,) = {tuple(own.ids.tolist()) for own in trainer._given(0).experiences}
    assert own[0] == 9 and own.count(9) == 1
    trainer.save_model()
    assert load_policy(str(tmp_path)).policy.processor.encode_prompt("w1")[0] == 9


# ---- refusals ----


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"objective": "mmada_stage9"}, "objective='mmada_stage9' is not valid"),
        ({"law": "sine"}, "law='sine' is not valid"),
        ({"task_overrides": {"text": {"lawn": 1}}}, "task_overrides.text.key='lawn' is not valid"),
        ({"task_overrides": "{"}, "task_overrides='{' is not JSON"),
        ({"sampling_weights": "3"}, "sampling_weights=3 must be a mapping"),
        ({"chat_template_kwargs": "[1]"}, r"chat_template_kwargs=\[1\] must be a mapping"),
        ({"chat_template_kwargs": {"day": object}}, "chat_template_kwargs.day=<class 'object'> cannot be saved with the run"),
        ({"train_turns": "first"}, "train_turns='first' is not valid"),
        ({"max_length": 1}, "max_length=1 must be at least 2"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_train_are_refused(tmp_path, keys, said):
    with pytest.raises(ValueError, match=said):
        MaskedDenoisingConfig(str(tmp_path), use_cpu=True, report_to="none", **keys)


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ([*TEXT, {"prompt": "w1", "completion": "w5 " * 40}], {}, r"train_dataset\[12\]: .* cut away"),
        ({"chats": TEXT, "more": [{"prompt": "w1"}]}, {}, r"more\[0\]\['completion'\]"),
        ([], {}, "train_dataset has no rows"),
        (MIXED, {"sampling_weights": {"chats": 1.0}}, r"sampling_weights names \['chats'\], the sources are"),
        (MIXED, {"objective": "llada"}, "the objective has no loss for task 't2i'"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused_before_anything_runs(tmp_path, rows, keys, said):
    with pytest.raises(ValueError, match=said):
        given_trainer(tmp_path, rows, **keys)


# ---- rows that do not fit, rows of unlike lengths ----

LONG = {"prompt": "w1", "completion": "w5 " * 40}


def test_rows_that_do_not_fit_are_dropped_and_counted_once(tmp_path, capsys):
    asked = {"prompt": "w1 " * 520, "completion": "w5"}
    trainer = given_trainer(tmp_path, {"chats": [LONG, *TEXT, asked], "others": TEXT}, overlong="drop")
    assert trainer.train_dataset["chats"][0] == TEXT[0] and len(trainer.train_dataset["chats"]) == len(TEXT)
    assert trainer._mixture.sizes == {"chats": len(TEXT), "others": len(TEXT)}
    said = capsys.readouterr().err
    assert (
        said.count("rows do not fit")
        == said.count("chats: 2 of 14 rows do not fit into max_length=24 and are left out")
        == 1
    )
    with pytest.raises(ValueError, match="train_dataset has no row that fits into max_length=24"):
        given_trainer(tmp_path, [LONG], overlong="drop")
    with pytest.raises(ValueError, match="completion"):
        given_trainer(tmp_path, [*TEXT, {"prompt": "w1", "completion": " "}], overlong="drop")


@pytest.mark.parametrize("padding", ["all", "none"])
def test_rows_of_like_length_stand_together_and_it_changes_no_loss(tmp_path, monkeypatch, padding):
    """Against units of everything at once, padded to the longest row, in the order in which rows are drawn."""
    rows = [{"prompt": "w1 " * (1 + 9 * i), "completion": "w5 " * (1 + 3 * i)} for i in range(12)]
    settings = {
        "max_length": 200,
        "train_padding": padding,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 6,
    }
    results, sizes = [], []
    for sorts in (True, False):
        if not sorts:
            monkeypatch.setattr(batches, "bucket", lambda experience, policy: 0)
            monkeypatch.setattr(step_module, "bucket", lambda experience, policy: 0)
        trainer = given_trainer(tmp_path, rows, **settings)
        given = trainer._given(0)
        lengths = [len(own.ids) for own in given.experiences]
        units = [unit.indices for part in given.micro_batches for unit in part]
        sizes.append(sum(max(lengths[index] for index in unit) * len(unit) for unit in units))
        sum(
            trainer._unit_loss(trainer.model.eval(), given, unit) for part in given.micro_batches for unit in part
        ).backward()
        trainer.model.train()
        results.append(gradients(trainer.model))
        trainer.train()
        results.append(numbers(trainer))
    assert distance(results[0], results[2]) < 1e-5
    assert results[1].tolist() == pytest.approx(results[3].tolist(), rel=1e-4)
    assert sizes[0] == sizes[1] if padding == "all" else sizes[0] < 0.8 * sizes[1]

"""What a mixed run owes its rewards and its memory: the same arguments in every window, pictures decoded once and let go."""

from __future__ import annotations

import pytest

import unigrpo.rollout.sample as sampling
from unigrpo.runs.build import ForTask
from unigrpo.training.evaluation import held_out_answers

from ..support.images import options


def test_a_groups_picture_is_decoded_once(make_trainer, monkeypatch):
    trainer = make_trainer(**options("mmu", 2, per_device_train_batch_size=8, num_generations=4))
    decoded = []
    real = sampling.image_of
    monkeypatch.setattr(sampling, "image_of", lambda row, where: decoded.append(where) or real(row, where))
    rows = [trainer.train_dataset[place] for place in (0, 0, 0, 0, 1, 1, 1, 1)]
    samples = sampling.sample_answers(trainer.pipeline(), rows, 0)
    assert len(decoded) == 2
    assert samples[0].images[0] is samples[3].images[0] and samples[0].images[0] is not samples[4].images[0]


def test_held_out_answers_are_scored_in_batches_and_let_their_pictures_go(make_trainer):
    sizes = []

    def reward(prompts, completions, images, **_):
        sizes.append(len(completions))
        assert all(own[0].mode == "RGB" for own in images)
        return [float(number) for number in range(len(completions))]

    trainer = make_trainer(**options("mmu", 5, rewards=reward, per_device_train_batch_size=8, num_generations=4))
    rows = [trainer.train_dataset[place] for place in range(5)]
    samples = held_out_answers(trainer.pipeline(), rows, 1, 2)
    assert sizes == [2, 2, 1]
    assert [float(own.scores[0]) for own in samples] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert all(own.images is None for own in samples)


def test_for_task_spreads_extra_columns_and_names_who_erred():
    logged = {}

    def explains(completions, log_extra, **_):
        log_extra("why", [f"{own}!" for own in completions])
        return [1.0] * len(completions)

    arguments = {"prompts": ["p", "q", "r"], "completions": ["a", "b", "c"], "task": ["text", "t2i", "text"]}
    scores = ForTask(explains, "text")(**arguments, log_extra=lambda column, values: logged.update({column: values}))
    assert scores == [1.0, None, 1.0]
    assert logged == {"why": ["a!", None, "c!"]}

    def short(completions, **_):
        return [1.0]

    for wrong in (short, lambda **_: 0.5):
        with pytest.raises(ValueError, match=r"must return a list of 2 scores for the rows of task 'text'"):
            ForTask(wrong, "text")(**arguments)


def test_a_tokenizer_named_for_the_run_is_saved_with_the_weights(make_trainer, tmp_path):
    from ..support.images import tiny_tokenizer

    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    settings = options("t2i", 2, per_device_train_batch_size=8, num_generations=4)
    trainer = make_trainer(**{**settings, "image_tokenizer": str(tmp_path / "tokenizer")})
    trainer.save_model(str(tmp_path / "weights"))
    assert str(tmp_path / "tokenizer") in (tmp_path / "weights" / "config.json").read_text()

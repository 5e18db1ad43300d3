"""The shipped image tokenizer restores the shapes world; its training script is private and repeatable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unigrpo.models.magvit import MagvitV2
from unigrpo.toy import emoji
from unigrpo.toy.making.fitting import fit
from unigrpo.toy.making.image_tokenizer import (
    WORLDS,
    autoencoder_loss,
    checkpoint,
    emoji_pictures,
    gallery,
    reconstruct,
    shapes_accuracy,
)

from ..support.tolerances import assert_rounding


@pytest.fixture(scope="module")
def shipped() -> MagvitV2:
    return MagvitV2.from_pretrained(checkpoint("shapes"))


def test_the_shipped_tokenizer_restores_colour_and_shape(shipped):
    assert shapes_accuracy(shipped, per_spec=1, seed=77) >= 0.93


def test_the_shipped_tokenizer_has_the_stated_shape(shipped):
    assert shipped.config.codebook_size == 512 and shipped.factor == 8
    assert shipped.code_grid(32, 32) == (4, 4)


def test_the_librarys_encode_and_decode_give_the_same_reconstruction(shipped):
    _, pixels = gallery(1, 5)
    codes = shipped.encode(pixels[::24])
    assert codes.shape == (10, 16)
    expected = reconstruct(shipped, pixels[::24])
    assert_rounding(shipped.decode(codes, 32, 32).clamp(-1, 1), expected)


def test_emoji_are_learned_from_scenes_that_are_not_held_out():
    for split in emoji.SPLITS:
        scenes, pixels = emoji_pictures(split, 5, 3)
        assert {emoji.split_of(scene) for scene in scenes} == {split}
        assert pixels.shape == (5, 3, 48, 48) and pixels.min() >= -1 and pixels.max() <= 1
        assert torch.equal(pixels, emoji_pictures(split, 5, 3)[1])
        assert not torch.equal(pixels, emoji_pictures(split, 5, 4)[1])


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr("unigrpo.toy.making.fitting.STEPS_BETWEEN_STATES", 3)

    def run(steps: int, state=None) -> torch.nn.Linear:
        generator = torch.Generator().manual_seed(1)
        model = torch.nn.Linear(4, 1)
        torch.nn.init.ones_(model.weight), torch.nn.init.zeros_(model.bias)

        def loss(step: int) -> torch.Tensor:
            if step == steps:
                raise KeyboardInterrupt
            return (model(torch.randn(8, 4, generator=generator)) - step).square().mean()

        fit(model, loss, steps=9, title="test", generator=generator, state=state, lr=0.1, betas=(0.9, 0.99))
        return model

    state = tmp_path / "new" / "state.pt"
    whole = run(-1)
    with pytest.raises(KeyboardInterrupt):
        run(7, state)
    assert torch.load(state)["step"] == 6
    resumed = run(-1, state)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)


@pytest.mark.slow  # Nothing that ships runs it: the checkpoint that it made is tested above.
@pytest.mark.parametrize("world", sorted(WORLDS))
def test_a_few_steps_learn_repeat_and_leave_the_global_stream_alone(world, monkeypatch):
    monkeypatch.setattr("unigrpo.toy.making.image_tokenizer.PICTURES_PER_SPEC", 1)

    def run(steps: int) -> tuple[MagvitV2, float]:
        model = WORLDS[world].train(steps, seed=3)
        with torch.no_grad():
            pixels = gallery(1, 5)[1][:16] if world == "shapes" else emoji_pictures("test", 16, 5)[1]
            return model, autoencoder_loss(model, pixels, entropy_weight=0.0).item()

    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    _, first = run(1)
    model, last = run(12)
    again, _ = run(12)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert last < 0.8 * first
    for name, value in model.state_dict().items():
        assert_rounding(value, again.state_dict()[name])

"""Scorers that wait on the CPU: the same scores, and a model that is on its device for a call and no longer."""

from __future__ import annotations

import pytest

from unigrpo.rewards import get_reward
from unigrpo.rewards.clip import ClipScore
from unigrpo.rewards.imagereward import ImageReward
from unigrpo.rewards.preferences import PickScore
from unigrpo.rewards.siglip import SiglipScore

from ..support.tiny_picture_rewards import save_all
from ..support.tiny_scorers import Broken, picture, save_clip, save_image_reward


CARD = "cpu:0"
"""A device with a name of its own that every machine has."""

KINDS = ["clip_score", "image_reward", "pick_score", "hps_v2", "aesthetic", "siglip_score"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(kind, **arguments)``: a reward over tiny files."""
    clip = save_clip(tmp_path_factory.mktemp("clip"))
    image = save_image_reward(tmp_path_factory.mktemp("image_reward"))
    other = save_all(tmp_path_factory.mktemp("others"))

    def make(kind: str, **arguments):
        if kind == "clip_score":
            return ClipScore(clip, clamp_min=None, **arguments)
        if kind == "image_reward":
            return ImageReward(str(image), tokenizer=str(image / "bert"), vision_heads=3, **arguments)
        return other(kind, **{"device": None, **arguments})

    return make


class Recorded:
    """A scorer that notes where it is moved and when it works."""

    def __init__(self, scorer) -> None:
        self.scorer, self.window, self.seen = scorer, scorer.window, []
        self.pixels, self.count_tokens = scorer.pixels, scorer.count_tokens

    def to(self, device) -> None:
        self.seen.append(str(device))
        self.scorer.to(device)

    def score(self, pixels, texts):
        self.seen.append("scores")
        return self.scorer.score(pixels, texts)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_model_is_moved_for_a_call_and_scores_the_same(made, kind):
    texts, images = ["a b", "c", "a"], [picture(seed) for seed in range(3)]
    expected = made(kind, device="cpu")(texts, images)
    assert len(set(expected)) == 3
    for offload, moves in ((False, [CARD]), (True, [CARD, "cpu"])):
        reward = made(kind, device=CARD, batch_size=2)
        reward.offload = offload
        reward._scorer = scorer = Recorded(reward._loaded())
        for _ in range(2):
            assert reward(texts, images) == pytest.approx(expected, abs=1e-5)
            assert scorer.seen == [moves[0], "scores", "scores", *moves[1:]]
            scorer.seen.clear()
        reward.to(CARD)
        assert scorer.seen == ["cpu" if offload else CARD]


def test_it_goes_back_when_a_call_fails(made):
    reward = made("clip_score", device=CARD)
    reward.offload = True
    reward._scorer = scorer = Recorded(reward._loaded())
    scorer.score = None
    with pytest.raises(TypeError):
        reward(["a"], [picture(0)])
    assert scorer.seen == [CARD, "cpu"]
    scorer.seen.clear()
    with pytest.warns(UserWarning, match="cannot be processed"):
        assert reward(["a"], [Broken()]) == [None]
    assert scorer.seen == [CARD, "cpu"]
    scorer.seen.clear()
    assert reward(["a"], ["a text without a picture"]) == [None] and scorer.seen == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_size_is_known_without_weights(made, kind, dtype):
    """Shapes and dtypes are those of what is loaded, and nothing is allocated."""
    reward = made(kind, dtype=dtype)
    module, _ = reward.without_weights()
    scorer = reward._loaded()
    real = scorer.encoder._model if hasattr(scorer, "encoder") else scorer._model
    seen = {name: (tuple(own.shape), own.dtype) for name, own in real.named_parameters()}
    assert {name: (tuple(own.shape), own.dtype) for name, own in module.named_parameters()} == seen
    assert all(own.is_meta for own in module.parameters())
    assert made(kind, device="cpu").without_weights() is None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("clip_score", 427_616_513),
        ("image_reward", 446_206_689),
        ("pick_score", 986_109_441),
        ("hps_v2", 986_109_441),
        ("aesthetic", 304_894_177),
        ("siglip_score", 1_136_008_498),
    ],
)
def test_published_sizes_stand_in_for_what_cannot_be_reached(name, parameters):
    model, _ = get_reward(name, device="cuda:0").without_weights()
    assert sum(own.numel() for own in model.parameters()) == parameters


def test_a_size_that_only_loading_would_tell():
    for kind in (ClipScore, PickScore, SiglipScore):
        with pytest.raises(OSError):
            kind("nobody/no-such-model").without_weights()
    with pytest.raises(ValueError, match=r"image_reward: model='nobody/none' has to be loaded to know its size"):
        ImageReward("nobody/none").without_weights()
    with pytest.raises(ValueError, match=r"clip_score: model='ViT-B-32' has to be loaded"):
        ClipScore("ViT-B-32", backend="open_clip", pretrained="openai").without_weights()

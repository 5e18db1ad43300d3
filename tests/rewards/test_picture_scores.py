"""``pick_score``, ``hps_v2``, ``aesthetic``, ``siglip_score``: their goldens and mutations, rows, ranges, what is refused."""

from __future__ import annotations

import copy
import math
import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from unigrpo.rewards import get_reward
from unigrpo.rewards._encoders import clip_scores
from unigrpo.rewards._preparation import CLIP_MEAN, CLIP_STD, letterbox, middle
from unigrpo.rewards._published import CLIP_H, CLIP_L, REVISIONS, source_of
from unigrpo.rewards.siglip import ProbabilityScorer
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs.build import ForTask
from unigrpo.runs.train import reward_models
from unigrpo.testing import check_reward

from ..support.hostile import Payload
from ..support.reward_rows import answers
from ..support.tiny_picture_rewards import SIDE, SIGLIP_TEXTS, TEXTS, clip_letters, golden, rows, save_all
from ..support.tiny_scorers import Broken, Log, picture


pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("ignore:.* tokens and only the first:UserWarning")]

GOLDEN = golden()
GOLDEN["siglip_score"] = [100 * cosine for cosine in GOLDEN["siglip_cosine"]]
KINDS = {"pick_score": 1.2e-5, "hps_v2": 1e-6, "aesthetic": 1e-5, "siglip_score": 1e-4}
"""Largest differences: 1e-6 of a cosine times its scale (12, 1, 100), as for CLIP; of the aesthetic head as for ImageReward's."""
RANGES = {"pick_score": (-100, 100), "hps_v2": (-1, 1), "aesthetic": (-math.inf, math.inf), "siglip_score": (0, 100)}
WITH_TEXT = ["pick_score", "hps_v2", "siglip_score"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("pictures"))


def texts(kind):
    return list(SIGLIP_TEXTS if kind == "siglip_score" else TEXTS)


def difference(reward):
    kind = reward.__name__
    pairs = zip(reward(texts(kind), rows()), GOLDEN[kind], strict=True)
    return max(abs(one - two) for one, two in pairs)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_original(made, kind):
    """From pictures and texts up: preparation, tokens, model and formula."""
    for batch_size in (32, 2):
        assert difference(made(kind, batch_size=batch_size)) <= KINDS[kind]
    assert len({round(score, 3) for score in GOLDEN[kind]}) == 5


def test_texts_become_the_ids_that_hpsv2_reads():
    ids = clip_letters()(list(TEXTS), truncation=True, max_length=77)["input_ids"]
    assert ids == GOLDEN["hps_v2_ids"]


MUTATIONS = {
    "hps_v2 crops": ("hps_v2", lambda own: vars(own).update(pixels=lambda image: middle(image, SIDE))),
    "aesthetic with black bars": (
        "aesthetic",
        lambda own: vars(own).update(pixels=lambda image: letterbox(image, SIDE)),
    ),
    "aesthetic of an embedding as it is": ("aesthetic", lambda own: _unnormalised(own)),
    "a picture's middle for siglip": (
        "siglip_score",
        lambda own: vars(own).update(pixels=lambda image: middle(image, SIDE)),
    ),
    "siglip without its capitals in small": ("siglip_score", lambda own: _tokens(own, lower=False)),
    "siglip without padding": ("siglip_score", lambda own: _tokens(own, padding=True)),
    "quick gelu": ("pick_score", lambda own: _quick_gelu(own.encoder._model)),
    "another scale": ("pick_score", lambda own: vars(own).update(_scale=100.0)),
}


def _unnormalised(own):
    own._model.forward = lambda pixels: own._model.head(
        own._model.visual_projection(own._model.vision_model(pixel_values=pixels).pooler_output)
    ).squeeze(-1)


def _tokens(own, padding="max_length", lower=True):
    encoder = own.encoder

    def embed(given):
        given = [text.lower() if lower else text for text in given]
        ids = encoder._tokenizer(given, padding=padding, truncation=True, max_length=16, return_tensors="pt")[
            "input_ids"
        ]
        return encoder._model.get_text_features(input_ids=ids).pooler_output

    encoder.embed_texts = embed


def _quick_gelu(model):
    for layer in [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]:
        layer.mlp.activation_fn = ACT2FN["quick_gelu"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_seen(made, name):
    kind, spoil = MUTATIONS[name]
    reward = made(kind, batch_size=1)
    reward._scorer = reward._loaded()
    spoil(reward._scorer)
    assert difference(reward) > 10 * KINDS[kind]


def test_the_probability_is_siglips(made):
    bias, scale = -1.5, math.exp(2.3)
    expected = [1 / (1 + math.exp(-(scale * cosine + bias))) for cosine in GOLDEN["siglip_cosine"]]
    assert made("siglip_score", probability=True)(texts("siglip_score"), rows()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (7, 91)])
def test_protocol_and_range(made, kind, size):
    seen = answers(picture(0), picture(1, size), picture(2, mode="RGBA"), prompt="a b")
    blank = answers(picture(0), prompt="") + answers(picture(1), prompt=[{"role": "user", "content": " \n"}])
    none_for = answers("some text") + ([] if kind == "aesthetic" else blank)
    check_reward(made(kind), seen, range=RANGES[kind], none_for=none_for)


def vectors(size):
    number = st.floats(-1e3, 1e3, width=32)
    return st.lists(number, min_size=size, max_size=size).map(lambda own: torch.tensor([own]))


@settings(max_examples=60, deadline=None)
@given(vectors(3), vectors(3), st.floats(0, math.log(100)), st.floats(-20, 20))
def test_ranges_hold_for_any_embeddings(image, text, log_scale, bias):
    scale, slack = math.exp(log_scale), 1e-4
    assert abs(clip_scores(image, text, 1.0, None).item()) <= 1 + slack
    assert abs(clip_scores(image, text, scale, None).item()) <= 100 + 100 * slack
    assert 0 <= clip_scores(image, text, 100.0, 0.0).item() <= 100 + 100 * slack

    class Encoder:
        window, pixels, count_tokens, to = 1, None, None, None
        logit_scale, logit_bias = scale, bias
        embed_images, embed_texts = staticmethod(lambda pixels: image), staticmethod(lambda texts: text)

    assert 0 <= ProbabilityScorer(Encoder()).score(image, [""]).item() <= 1


@pytest.mark.parametrize("kind", WITH_TEXT)
def test_rows_captions_and_counters(made, kind):
    """A long text is cut and counted, a broken picture is None and counted, a caption is scored against its picture."""
    log, reward = Log(), made(kind)
    with pytest.warns(UserWarning, match="cannot be processed"):
        drawn = reward(["a b", "a " * 90, "", "c"], [picture(0), picture(1), picture(2), Broken()], log_metric=log)
    assert [score is None for score in drawn] == [False, False, True, True]
    assert log == {f"{kind}/truncated_frac": pytest.approx(1 / 3), f"{kind}/failed": 1.0}
    caption, nothing = reward(["?", "?"], ["a b", "a b"], images=[[picture(0)], None], log_metric=log)
    assert caption == pytest.approx(drawn[0], abs=1e-4) and nothing is None


def test_the_aesthetic_reads_the_picture_alone(made):
    log, reward = Log(), made("aesthetic")
    scores = reward(["a", "", [{"role": "user", "content": "b"}]], [picture(0)] * 3, log_metric=log)
    assert len(set(scores)) == 1 and log == {"aesthetic/failed": 0.0}
    with pytest.warns(UserWarning, match="cannot be processed"):
        assert reward(["?"] * 2, ["a caption", Broken()], images=[[picture(0)], None], log_metric=log) == [None, None]
    assert log == {"aesthetic/failed": 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near(made, kind):
    whole, half = (made(kind, dtype=own)(texts(kind), rows()) for own in ("float32", "bfloat16"))
    low, high = min(whole), max(whole)
    assert half != whole and half == pytest.approx(whole, abs=(high - low) / 5)


def test_calls_at_once_load_once_and_take_turns(made):
    """A run's early calls come from threads; a copy has a lock of its own."""
    reward = made("pick_score")
    load, inside, most = reward._load, [], []

    class Watched:
        def __init__(self):
            self.scorer = load()

        def __getattr__(self, name):
            return getattr(self.scorer, name)

        def score(self, pixels, texts):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            return self.scorer.score(pixels, texts)

    loads = []
    reward._load = lambda: loads.append(1) or Watched()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: reward(["a"], [picture(0)]), range(3)))
    assert found[0] == found[1] == found[2] and len(loads) == 1 and most == [1, 1, 1]
    copied = pickle.loads(pickle.dumps(copy.deepcopy(made("pick_score"))))
    with reward._turn:
        assert copied(["a"], [picture(0)]) == found[0]


def test_letterbox_by_hand():
    """All of the picture, black bars above and below, and no rounding where nothing is resized."""
    image = picture(3, (8, 4))
    found = letterbox(image, 8) * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    values = torch.tensor(list(image.tobytes())).view(4, 8, 3).permute(2, 0, 1) / 255
    assert torch.allclose(found[:, 2:6], values, atol=1e-6)
    assert found[:, [0, 1, 6, 7]].abs().max() < 1e-6
    assert letterbox(Image.new("RGB", (1000, 1)), 8).shape == (3, 8, 8)


def test_a_run_can_say_what_it_is_scored_with(made):
    own = made("siglip_score")
    rewards = RewardSet(functions=[get_reward("pick_score"), ForTask(own, "t2i"), get_reward("think_format")])
    assert reward_models(rewards) == {"pick_score": get_reward("pick_score").source, "siglip_score": own.model}


def test_default_models_are_pinned_and_said(made, tmp_path, monkeypatch):
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in REVISIONS.values())
    for name, model in {
        "clip_score": "openai/clip-vit-large-patch14",
        "image_reward": "THUDM/ImageReward",
        "pick_score": "yuvalkirstain/PickScore_v1",
        "hps_v2": "xswu/HPSv2",
        "aesthetic": "trl-lib/ddpo-aesthetic-predictor",
        "siglip_score": "google/siglip2-so400m-patch14-384",
    }.items():
        assert get_reward(name).source.split(" ")[0] == f"{model}@{REVISIONS[model]}"
        assert get_reward(name, revision="main").source.split(" ")[0] == f"{model}@main"
    clip = {name: f"{model}@{REVISIONS[model]}" for name, model in {"pick_score": CLIP_H, "aesthetic": CLIP_L}.items()}
    assert {name: get_reward(name).source.split(" ")[1] for name in clip} == clip
    assert get_reward("pick_score", model="some/model", processor=None).source == "some/model@main"
    monkeypatch.setattr("unigrpo.rewards._published.constants.HF_HUB_CACHE", str(tmp_path))
    assert source_of("some/model", None) == "some/model@main"
    (tmp_path / "models--some--model" / "refs").mkdir(parents=True)
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0123abc")
    assert source_of("some/model", None) == "some/model@0123abc"


@pytest.mark.parametrize(
    ("kind", "arguments", "part"),
    [
        ("hps_v2", {"version": "v3"}, "version must be one of ['v2.1', 'v2.0'], got 'v3'"),
        ("siglip_score", {"probability": 1}, "probability must be true or false, got 1"),
        *((kind, {"dtype": "half"}, "dtype") for kind in KINDS),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(kind, arguments, part):
    with pytest.raises(ValueError) as error:
        get_reward(kind, **arguments)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("kind", "arguments", "part"),
    [
        ("hps_v2", {"version": "v2.0"}, "has no HPS_v2_compressed.pt"),
        ("hps_v2", {"config": None}, "does not fit the model"),
        ("siglip_score", {"model": "clip"}, "is a 'clip' and must be a 'siglip' model. clip_score reads CLIP"),
        ("pick_score", {"model": "siglip"}, "is a 'siglip' and must be a 'clip' model."),
        (
            "pick_score",
            {"processor": "siglip"},
            "the image processor crops to (224, 224) and the model reads (32, 32)",
        ),
        ("aesthetic", {"model": "clip"}, "has no aesthetic-model.pth"),
        ("aesthetic", {"clip": "siglip"}, "is a 'siglip' and must be a 'clip' model."),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, kind, arguments, part):
    reward = save_all(tmp_path)
    places = {"clip": str(tmp_path / "clip"), "siglip": str(tmp_path / "siglip")}
    arguments = {name: places.get(own, own) for name, own in arguments.items()}
    with pytest.raises(ValueError, match=re.escape(part)):
        reward(kind, **arguments)(["a"], [picture(0)])


@pytest.mark.parametrize(
    ("kind", "file"), [("hps_v2", "hps/HPS_v2.1_compressed.pt"), ("aesthetic", "aesthetic-model.pth")]
)
def test_a_file_with_anything_but_tensors_is_refused(tmp_path, kind, file):
    reward = save_all(tmp_path)
    torch.save({"state_dict": {"layers.0.weight": Payload()}}, tmp_path / file)
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        reward(kind)(["a"], [picture(0)])


def test_an_incomplete_head_and_an_incomplete_model_are_refused(tmp_path):
    reward = save_all(tmp_path)
    head = torch.load(tmp_path / "aesthetic-model.pth", weights_only=True)
    del head["layers.6.bias"]
    torch.save(head, tmp_path / "aesthetic-model.pth")
    with pytest.raises(ValueError, match=r"missing \['6.bias'\]"):
        reward("aesthetic")(["a"], [picture(0)])
    path = tmp_path / "siglip" / "model.safetensors"
    weights = load_file(path)
    del weights["vision_model.head.probe"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not a complete siglip checkpoint: .*vision_model\.head\.probe"):
        reward("siglip_score")(["a"], [picture(0)])

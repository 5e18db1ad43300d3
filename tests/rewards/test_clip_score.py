"""``clip_score``: formula, rows, texts that are too long, rows that fail, both backends."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPModel

from unigrpo.rewards import clip_score, get_reward
from unigrpo.rewards._image_text import pair_of
from unigrpo.rewards.clip import ClipScore, clip_scores

from ..support.tiny_scorers import (
    WINDOW,
    Broken,
    Log,
    clip,
    clip_refused,
    clip_tokenizer,
    picture,
    save_clip,
)


pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def scorer(folder):
    return clip(folder)


def by_hand(folder, image, text):
    """100 times the cosine, from the ids and the pixels up."""
    model, tokenizer = CLIPModel.from_pretrained(folder), clip_tokenizer()
    ids = tokenizer(text)["input_ids"]
    ids = ids if len(ids) <= WINDOW else [*ids[: WINDOW - 1], tokenizer.eos_token_id]
    scale = 16 / min(image.size)
    image = image.convert("RGB").resize([int(side * scale) for side in image.size], 3)
    left, top = (image.width - 16) // 2, (image.height - 16) // 2
    crop = image.crop((left, top, left + 16, top + 16))
    values = torch.tensor(list(crop.tobytes())).view(16, 16, 3).permute(2, 0, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.inference_mode():
        image_embed = model.get_image_features(pixel_values=((values / 255 - mean) / std)[None]).pooler_output[0]
        text_embed = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output[0]
    return 100 * F.cosine_similarity(image_embed.double(), text_embed.double(), dim=0).item()


@pytest.mark.parametrize(
    ("image", "text", "arguments", "score"),
    [
        ([1.0, 0.0], [1.0, 0.0], (100.0, 0.0), 100.0),
        ([1.0, 0.0], [0.0, 3.0], (100.0, 0.0), 0.0),
        ([2.0, 0.0], [-1.0, 0.0], (100.0, 0.0), 0.0),
        ([2.0, 0.0], [-1.0, 0.0], (100.0, None), -100.0),
        ([2.0, 0.0], [-1.0, 0.0], (100.0, -30.0), -30.0),
        ([3.0, 4.0], [1.0, 0.0], (100.0, 0.0), 60.0),
        ([3.0, 4.0], [1.0, 0.0], (1.0, 0.0), 0.6),
        ([3.0, 4.0], [1.0, 0.0], (2.5, 1.6), 1.6),
        ([0.0, 0.0], [1.0, 0.0], (100.0, None), 0.0),
    ],
)
def test_the_formula(image, text, arguments, score):
    found = clip_scores(torch.tensor([image]), torch.tensor([text]), *arguments)
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx([score], abs=1e-5)


def test_the_cosine_is_taken_in_fp32():
    image, text = torch.tensor([[1.0, 1 / 256]]).bfloat16(), torch.tensor([[1.0, 0.0]]).bfloat16()
    exact = 100 / math.hypot(1, 1 / 256)
    assert clip_scores(image, text, 100.0, 0.0).item() == pytest.approx(exact, abs=1e-5)


@pytest.mark.smoke
def test_scores_are_those_computed_by_hand(folder, scorer):
    images = [picture(0), picture(1, (16, 16)), picture(2, (41, 20), "L")]
    texts = ["ab c", "f", "d e f a b c d e f a b"]
    expected = [by_hand(folder, image, text) for image, text in zip(images, texts, strict=True)]
    with pytest.warns(UserWarning, match="13 tokens"):
        assert scorer(texts, images) == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 5, "the pairs must not all score the same"


def test_a_batch_of_several_tasks(folder):
    """Text to image with and without ``reward_prompt``, a caption, plain text, a question without an image."""
    rows = [
        ("ab c", picture(0), None, None, "t2i"),
        ([{"role": "user", "content": "d e"}], picture(1), None, None, "t2i"),
        ("what?", [{"role": "assistant", "content": "a b"}], [picture(4), picture(5)], None, "mmu"),
        ("2+2", "4", None, "b", "text"),
        ("f", picture(2), None, "e", "t2i"),
        ([{"role": "system", "content": "x"}], picture(3), None, None, "t2i"),
    ]
    names = ("prompts", "completions", "images", "reward_prompt", "task")
    columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    pairs = [(picture(0), "ab c"), (picture(1), "d e"), (picture(4), "a b"), (picture(2), "e")]
    expected = [by_hand(folder, *pair) for pair in pairs]
    for batch_size in (32, 1, 2, 4):
        scores = clip(folder, batch_size=batch_size)(**columns, solution=[None] * 6)
        assert [scores.pop(5), scores.pop(3)] == [None, None]
        assert scores == pytest.approx(expected, abs=1e-3 if batch_size == 32 else 1e-4)
        expected = scores if batch_size == 32 else expected


DRAWN = picture(0)


def said(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (("a", DRAWN, None, None), "a"),
        (("a", DRAWN, None, "b"), "b"),
        (("a", DRAWN, None, ""), None),
        ((" \n", DRAWN, None, None), None),
        (([said("a"), said("b")], DRAWN, None, None), "a\nb"),
        (([said([{"type": "image"}, {"type": "text", "text": "a"}])], DRAWN, None, None), "a"),
        (([{"role": "system", "content": "s"}, said("a")], DRAWN, None, None), "a"),
        (([], DRAWN, None, None), None),
        ((None, DRAWN, None, None), None),
        (("q", "caption", [DRAWN], None), "caption"),
        (("q", "", [DRAWN], None), ""),
        (("q", "caption", DRAWN, "b"), "caption"),
        (("q", "caption", [], None), None),
        (("q", "caption", None, None), None),
        (("q", None, [DRAWN], None), None),
        (("a" * 50_000, DRAWN, None, None), "a" * 10_000),
    ],
)
def test_the_text_of_a_row(row, text):
    pair = pair_of(*row)
    assert (None if pair is None else pair.text) == text


def test_long_texts_are_cut_counted_and_warned_about_once(scorer):
    log, fits, long = Log(), "a b c d e f", "a b c d e f a"
    with pytest.warns(UserWarning, match="9 tokens and only the first 8 count"):
        scores = scorer([fits, long, fits, long], [picture(0)] * 4, log_metric=log)
    assert log == {"clip_score/truncated_frac": 0.5, "clip_score/failed": 0.0}
    assert scores[1] == pytest.approx(scores[0], abs=1e-4), "what is cut off does not count, the end of the text does"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text, share in ((long, 1.0), (fits, 0.0)):
            scorer([text], [picture(0)], log_metric=log)
            assert log["clip_score/truncated_frac"] == share


def test_a_row_that_fails_is_none_and_counted(scorer):
    log = Log()
    with pytest.warns(UserWarning, match="cannot be processed .OSError: image file is truncated"):
        scores = scorer(["a", "b", "c"], [picture(0), Broken(), picture(1)], log_metric=log)
    assert [score is None for score in scores] == [False, True, False]
    assert log == {"clip_score/failed": 1.0, "clip_score/truncated_frac": 0.0}
    assert scores[0] == pytest.approx(scorer(["a"], [picture(0)])[0], abs=1e-4)
    caption = scorer(["q", "q"], ["a", "b"], images=[["no image"], [picture(0)]], log_metric=log)
    assert caption[0] is None and caption[1] is not None and log["clip_score/failed"] == 1.0
    assert scorer(["a"], [Broken()]) == [None]


def test_a_score_that_is_not_finite_is_none(scorer):
    scorer(["a"], [picture(0)])
    scorer._scorer._scale, log = float("nan"), Log()
    with pytest.warns(UserWarning, match="not finite"):
        assert scorer(["a"], [picture(0)], log_metric=log) == [None]
    assert log["clip_score/failed"] == 1.0


def test_nothing_is_loaded_before_it_is_needed():
    scorer, log = ClipScore("no/such-model"), Log()
    assert scorer([], []) == []
    assert scorer(["p", "q"], ["a", [{"role": "assistant", "content": "b"}]], log_metric=log) == [None, None]
    assert not log
    with pytest.raises(OSError, match="no/such-model"):
        scorer(["p"], [picture(0)])


def test_it_is_loaded_once_in_eval_mode_and_leaves_the_run_alone(scorer):
    """Neither the run's random numbers nor its gradients move, and its autocast moves no score."""
    state = torch.random.get_rng_state()
    expected = scorer(["a b"], [picture(0)])
    assert torch.equal(torch.random.get_rng_state(), state)
    loaded = scorer._scorer
    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer(["a b"], [picture(0)]) == pytest.approx(expected, abs=1e-4)
    assert scorer._scorer is loaded
    model = loaded.encoder._model
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_is_near(folder):
    (whole,), (half,) = (clip(folder, dtype=own)(["a b"], [picture(0)]) for own in ("float32", "bfloat16"))
    assert half != whole and half == pytest.approx(whole, abs=5)


def test_to_moves_what_is_loaded_and_what_is_not(folder):
    scorer = clip(folder, device="meta")
    assert scorer.to("cpu") is scorer and scorer.device == torch.device("cpu")
    expected = scorer(["a"], [picture(0)])
    assert scorer.to(torch.device("cpu"))(["a"], [picture(0)]) == pytest.approx(expected, abs=1e-4)
    scorer.to("meta")
    assert next(scorer._scorer.encoder._model.parameters()).is_meta


@pytest.mark.gpu
def test_scores_on_cuda_are_those_on_the_cpu(folder, scorer):
    texts, images = ["a b", "c"], [picture(0), picture(1)]
    expected, other = scorer(texts, images), clip(folder, device=None)
    assert other.device.type == "cuda"
    assert other(texts, images) == pytest.approx(expected, abs=0.05)
    assert other.to("cpu")(texts, images) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"backend": "openai"}, "['transformers', 'open_clip'], got 'openai'"),
        ({"scale": 0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": "100"}, "'100'"),
        ({"clamp_min": float("inf")}, "clamp_min"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_size": 2.0}, "2.0"),
        ({"dtype": "fp32"}, "'float32'"),
        ({"device": "gpu"}, "'gpu'"),
        ({"backend": "open_clip", "model": "ViT-B-32"}, "pretrained"),
        ({"backend": "open_clip", "pretrained": "openai", "revision": "main"}, "revision='main'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(arguments, part):
    with pytest.raises(ValueError) as error:
        ClipScore(**arguments)
    assert part in str(error.value)


def test_the_registry():
    assert clip_score.__name__ == "clip_score" and clip_score is get_reward("clip_score")
    assert (clip_score.model, clip_score.scale, clip_score.clamp_min) == ("openai/clip-vit-large-patch14", 100.0, 0.0)
    assert get_reward("clip_score", scale=1.0).scale == 1.0
    assert get_reward("clip_score", scale=1.0) is not clip_score


def test_an_incomplete_checkpoint_is_refused(tmp_path):
    path = Path(save_clip(tmp_path)) / "model.safetensors"
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    clip_refused(r"missing_keys.*visual_projection\.weight", tmp_path)


@pytest.mark.parametrize(
    ("change", "part"), [({"eos_token_id": 3}, "at token 3"), ({"vocab_size": 14, "eos_token_id": 2}, "15 tokens")]
)
def test_a_tokenizer_of_another_model_is_refused(tmp_path, change, part):
    clip_refused(part, save_clip(tmp_path, **change))


def test_eos_2_reads_the_largest_id_as_openai_s_models_do(scorer, tmp_path):
    texts, images = ["a b", "f"], [picture(0), picture(1)]
    assert clip(save_clip(tmp_path, eos_token_id=2))(texts, images) == pytest.approx(scorer(texts, images), abs=1e-4)


def test_images_of_another_size_are_refused(folder, tmp_path):
    path = Path(save_clip(tmp_path)) / "preprocessor_config.json"
    path.write_text(path.read_text().replace("16", "32"))
    clip_refused(r"crops to \(32, 32\).*\(16, 16\)", tmp_path)
    assert clip(tmp_path, processor=folder)(["a"], [picture(0)])[0] is not None


def test_a_preprocessor_config_as_openai_s_models_have_it(scorer, tmp_path):
    path = Path(save_clip(tmp_path)) / "preprocessor_config.json"
    made = json.loads(path.read_text())
    del made["image_processor_type"]
    made |= {"size": 16, "crop_size": 16, "feature_extractor_type": "CLIPFeatureExtractor"}
    path.write_text(json.dumps(made))
    assert clip(tmp_path)(["a"], [picture(0)]) == pytest.approx(scorer(["a"], [picture(0)]), abs=1e-4)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    clip_refused(r"'siglip'.*open_clip", tmp_path)

"""``clip_score``: formula, rows, texts that are too long, rows that fail, both backends."""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from unigrpo.rewards import clip_score, get_reward
from unigrpo.rewards._image_text import pair_of
from unigrpo.rewards.clip import ClipScore, clip_scores

from ..support.tiny_scorers import CLIP, WINDOW, Broken, clip_tokenizer, clip_weights, picture, save_clip


pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def scorer(folder):
    return ClipScore(folder, device="cpu")


class Log(dict):
    """A ``log_metric`` that remembers."""

    def __call__(self, name, value):
        self[name] = value


def by_hand(folder, image, text):
    """100 times the cosine, from the ids and the pixels up."""
    model, tokenizer = CLIPModel.from_pretrained(folder), clip_tokenizer()
    ids = tokenizer(text)["input_ids"]
    ids = ids if len(ids) <= WINDOW else [*ids[: WINDOW - 1], tokenizer.eos_token_id]
    width, height = image.size
    scale = 16 / min(width, height)
    image = image.convert("RGB").resize((int(width * scale), int(height * scale)), 3)
    left, top = (image.width - 16) // 2, (image.height - 16) // 2
    values = (
        torch.tensor(list(image.crop((left, top, left + 16, top + 16)).tobytes())).view(16, 16, 3).permute(2, 0, 1)
    )
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
def test_scores_are_those_computed_by_hand(folder):
    scorer = ClipScore(folder, device="cpu", clamp_min=None)
    images = [picture(0), picture(1, (16, 16)), picture(2, (41, 20), "L")]
    texts = ["ab c", "f", "d e f a b c d e f a b"]
    expected = [by_hand(folder, image, text) for image, text in zip(images, texts, strict=True)]
    with pytest.warns(UserWarning, match="13 tokens"):
        assert scorer(texts, images) == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 5, "the pairs must not all score the same"


def mixed():
    """Text to image with and without ``reward_prompt``, a caption, plain text, a question without an image."""
    return {
        "prompts": [
            "ab c",
            [{"role": "user", "content": "d e"}],
            "what?",
            "2+2",
            "f",
            [{"role": "system", "content": "x"}],
        ],
        "completions": [
            picture(0),
            picture(1),
            [{"role": "assistant", "content": "a b"}],
            "4",
            picture(2),
            picture(3),
        ],
        "images": [None, None, [picture(4), picture(5)], None, None, None],
        "reward_prompt": [None, None, None, "b", "e", None],
        "task": ["t2i", "t2i", "mmu", "text", "t2i", "t2i"],
        "solution": [None] * 6,
    }


def test_a_batch_of_several_tasks(folder):
    scorer = ClipScore(folder, device="cpu", clamp_min=None)
    pairs = [(picture(0), "ab c"), (picture(1), "d e"), (picture(4), "a b"), (picture(2), "e")]
    first, second, caption, replaced = (by_hand(folder, *pair) for pair in pairs)
    expected = [first, second, caption, None, replaced, None]
    scores = scorer(**mixed())
    assert [score is None for score in scores] == [score is None for score in expected]
    assert [s for s in scores if s is not None] == pytest.approx([e for e in expected if e is not None], abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_batch_size_does_not_matter(folder, batch_size):
    whole = ClipScore(folder, device="cpu", clamp_min=None)(**mixed())
    parts = ClipScore(folder, device="cpu", clamp_min=None, batch_size=batch_size)(**mixed())
    assert [score is None for score in parts] == [score is None for score in whole]
    assert [s for s in parts if s is not None] == pytest.approx([w for w in whole if w is not None], abs=1e-4)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (("a", picture(0), None, None), "a"),
        (("a", picture(0), None, "b"), "b"),
        (("a", picture(0), None, ""), None),
        ((" \n", picture(0), None, None), None),
        (([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], picture(0), None, None), "a\nb"),
        (
            (
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}],
                picture(0),
                None,
                None,
            ),
            "a",
        ),
        (([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], picture(0), None, None), "a"),
        (([], picture(0), None, None), None),
        ((None, picture(0), None, None), None),
        (("q", "caption", [picture(0)], None), "caption"),
        (("q", "", [picture(0)], None), ""),
        (("q", "caption", picture(0), "b"), "caption"),
        (("q", "caption", [], None), None),
        (("q", "caption", None, None), None),
        (("q", None, [picture(0)], None), None),
        (("a" * 50_000, picture(0), None, None), "a" * 10_000),
    ],
)
def test_the_text_of_a_row(row, text):
    pair = pair_of(*row)
    assert (None if pair is None else pair.text) == text


def test_long_texts_are_cut_counted_and_warned_about_once(folder):
    scorer, log = ClipScore(folder, device="cpu", clamp_min=None), Log()
    fits, long = "a b c d e f", "a b c d e f a"
    with pytest.warns(UserWarning, match="9 tokens and only the first 8 count"):
        scores = scorer([fits, long, fits, long], [picture(0)] * 4, log_metric=log)
    assert log == {"clip_score/truncated_frac": 0.5, "clip_score/failed": 0.0}
    assert scores[1] == pytest.approx(scores[0], abs=1e-4), "what is cut off does not count, the end of the text does"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer([long], [picture(0)], log_metric=log)
        assert log["clip_score/truncated_frac"] == 1.0
        scorer([fits], [picture(0)], log_metric=log)
        assert log["clip_score/truncated_frac"] == 0.0


def test_a_row_that_fails_is_none_and_counted(scorer):
    log = Log()
    with pytest.warns(UserWarning, match="cannot be processed .OSError: image file is truncated"):
        scores = scorer(["a", "b", "c"], [picture(0), Broken(), picture(1)], log_metric=log)
    assert [score is None for score in scores] == [False, True, False]
    assert log == {"clip_score/failed": 1.0, "clip_score/truncated_frac": 0.0}
    assert scores[0] == scorer(["a"], [picture(0)])[0]
    caption = scorer(["q", "q"], ["a", "b"], images=[["no image"], [picture(0)]], log_metric=log)
    assert caption[0] is None and caption[1] is not None and log["clip_score/failed"] == 1.0
    assert scorer(["a"], [Broken()]) == [None]


def test_a_score_that_is_not_finite_is_none(folder, scorer):
    scorer(["a"], [picture(0)])
    scorer._scorer._scale = float("nan")
    log = Log()
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


def test_columns_must_be_as_long_as_the_completions(scorer):
    with pytest.raises(ValueError):
        scorer(["a", "b"], [picture(0)] * 2, reward_prompt=["a"])


def test_it_is_loaded_once_in_eval_mode_without_gradients(scorer):
    scorer(["a"], [picture(0)])
    loaded = scorer._scorer
    with torch.enable_grad():
        scorer(["a"], [picture(0)])
    assert scorer._scorer is loaded
    model = loaded.encoder._model
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_random_numbers_of_a_run_do_not_depend_on_it(folder):
    state = torch.random.get_rng_state()
    ClipScore(folder, device="cpu")(["a"], [picture(0)])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_caller_s_autocast_does_not_change_a_score(scorer):
    expected = scorer(["a b"], [picture(0)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer(["a b"], [picture(0)]) == expected


def test_half_precision_is_near(folder):
    whole = ClipScore(folder, device="cpu", clamp_min=None)(["a b"], [picture(0)])[0]
    half = ClipScore(folder, device="cpu", clamp_min=None, dtype="bfloat16")(["a b"], [picture(0)])[0]
    assert half != whole and half == pytest.approx(whole, abs=5)


def test_to_moves_what_is_loaded_and_what_is_not(folder):
    scorer = ClipScore(folder, device="meta")
    assert scorer.to("cpu") is scorer and scorer.device == torch.device("cpu")
    expected = scorer(["a"], [picture(0)])
    assert scorer.to(torch.device("cpu"))(["a"], [picture(0)]) == expected
    scorer.to("meta")
    assert next(scorer._scorer.encoder._model.parameters()).is_meta


@pytest.mark.gpu
def test_scores_on_cuda_are_those_on_the_cpu(folder):
    expected = ClipScore(folder, device="cpu", clamp_min=None)(["a b", "c"], [picture(0), picture(1)])
    scorer = ClipScore(folder, clamp_min=None)
    assert scorer.device.type == "cuda"
    assert scorer(["a b", "c"], [picture(0), picture(1)]) == pytest.approx(expected, abs=0.05)
    assert scorer.to("cpu")(["a b", "c"], [picture(0), picture(1)]) == pytest.approx(expected, abs=1e-4)


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


def test_an_incomplete_checkpoint_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys.*visual_projection\.weight"):
        ClipScore(str(tmp_path), device="cpu")(["a"], [picture(0)])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"eos_token_id": 3}, "at token 3"),
        ({"vocab_size": 14, "eos_token_id": 2}, "15 tokens"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(tmp_path, change, part):
    save_clip(tmp_path, **change)
    with pytest.raises(ValueError, match=part):
        ClipScore(str(tmp_path), device="cpu")(["a"], [picture(0)])


def test_eos_2_reads_the_largest_id_as_openai_s_models_do(folder, tmp_path):
    save_clip(tmp_path, eos_token_id=2)
    texts, images = ["a b", "f"], [picture(0), picture(1)]
    assert ClipScore(str(tmp_path), device="cpu")(texts, images) == ClipScore(folder, device="cpu")(texts, images)


def test_images_of_another_size_are_refused(folder, tmp_path):
    save_clip(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text().replace("16", "32"))
    with pytest.raises(ValueError, match=r"crops to \(32, 32\).*\(16, 16\)"):
        ClipScore(str(tmp_path), device="cpu")(["a"], [picture(0)])
    assert ClipScore(str(tmp_path), processor=folder, device="cpu")(["a"], [picture(0)])[0] is not None


def test_a_preprocessor_config_as_openai_s_models_have_it(folder, tmp_path):
    save_clip(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    made = json.loads(path.read_text())
    made = {**without_type(made), "size": 16, "crop_size": 16, "feature_extractor_type": "CLIPFeatureExtractor"}
    path.write_text(json.dumps(made))
    assert ClipScore(str(tmp_path), device="cpu")(["a"], [picture(0)]) == ClipScore(folder, device="cpu")(
        ["a"], [picture(0)]
    )


def without_type(config):
    return {name: value for name, value in config.items() if name != "image_processor_type"}


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ValueError, match=r"'siglip'.*open_clip"):
        ClipScore(str(tmp_path), device="cpu")(["a"], [picture(0)])


def open_clip_folder(path):
    """The golden's model in open_clip's layout, with a tokenizer of which all ids are in its vocabulary."""
    path.mkdir(exist_ok=True)
    torch.save(clip_weights(), path / "open_clip_pytorch_model.bin")
    made = {"model_cfg": CLIP["gelu"]["config"], "preprocess_cfg": {}}
    (path / "open_clip_config.json").write_text(json.dumps(made))
    return path


def test_a_folder_of_open_clip_on_transformers(tmp_path):
    folder = open_clip_folder(tmp_path / "model")
    with pytest.raises(ValueError, match=r"no tokenizer.*`processor`"):
        ClipScore(str(folder), device="cpu")(["a"], [picture(0)])
    clip_tokenizer().save_pretrained(folder)
    by_folder = ClipScore(str(folder), device="cpu", clamp_min=None)(["a b", "c"], [picture(0), picture(1)])
    by_file = ClipScore(
        str(folder / "open_clip_config.json"),
        pretrained=str(folder / "open_clip_pytorch_model.bin"),
        processor=str(folder),
        device="cpu",
        clamp_min=None,
    )(["a b", "c"], [picture(0), picture(1)])
    assert by_folder == by_file and None not in by_folder and by_folder[0] != by_folder[1]
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="`pretrained`"):
        ClipScore(str(folder), device="cpu")(["a"], [picture(0)])


def test_without_open_clip_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r'pip install "unigrpo\[openclip\]"'):
        ClipScore("ViT-B-32", backend="open_clip", pretrained="openai")(["a"], [picture(0)])


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def open_clip_model(tmp_path):
    """A JSON configuration of open_clip and weights for it."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed (extra: openclip)")
    config = tmp_path / "tiny-reward-clip.json"
    config.write_text(json.dumps(TINY))
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    torch.nn.init.normal_(model.token_embedding.weight)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return model.eval(), str(config), str(tmp_path / "weights.pt")


def test_the_open_clip_backend(open_clip_model):
    import open_clip

    model, config, weights = open_clip_model
    log = Log()
    scorer = ClipScore(config, backend="open_clip", pretrained=weights, device="cpu", clamp_min=None, batch_size=2)
    texts = ["a red cat", "a green hill", " ".join(["dog"] * 11)]
    images = [picture(0, (40, 32)), picture(1), picture(2, mode="L")]
    with pytest.warns(UserWarning, match="13 tokens and only the first 12 count"):
        scores = scorer(texts, images, log_metric=log)
    preprocess = open_clip.image_transform(32, is_train=False, interpolation="bicubic", resize_mode="shortest")
    pixels = torch.stack([preprocess(image.convert("RGB")) for image in images])
    with torch.inference_mode():
        embeds = model.encode_image(pixels), model.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts, 12))
    expected = 100 * F.cosine_similarity(*embeds)
    assert scores == pytest.approx(expected.tolist(), abs=1e-3)
    assert len({round(score, 3) for score in scores}) == 3
    assert log == {"clip_score/truncated_frac": pytest.approx(1 / 3), "clip_score/failed": 0.0}


def test_the_open_clip_backend_with_a_tokenizer_of_the_hub(open_clip_model, tmp_path):
    model, _, weights = open_clip_model
    folder = tmp_path / "model"
    clip_tokenizer().save_pretrained(folder)
    Path(weights).rename(folder / "open_clip_pytorch_model.bin")
    text = {**TINY["text_cfg"], "hf_tokenizer_name": "in this folder"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**TINY, "text_cfg": text}}))
    log = Log()
    scorer = ClipScore(f"local-dir:{folder}", backend="open_clip", device="cpu", clamp_min=None)
    with pytest.warns(UserWarning, match="14 tokens and only the first 12 count"):
        scores = scorer(["a b", "c " * 12], [picture(0), picture(1)], log_metric=log)
    assert log["clip_score/truncated_frac"] == 0.5
    tokenizer = clip_tokenizer()
    ids = tokenizer(["a b", "c " * 12], padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    pixels = torch.stack([scorer._scorer.pixels(picture(seed)) for seed in (0, 1)])
    with torch.inference_mode():
        embeds = model.encode_image(pixels), model.encode_text(ids["input_ids"])
    assert scores == pytest.approx((100 * F.cosine_similarity(*embeds)).tolist(), abs=1e-3)


def test_both_backends_agree_on_the_same_weights(open_clip_model):
    model, config, weights = open_clip_model
    from unigrpo.rewards.clip import load_open_clip_as_clip

    converted = load_open_clip_as_clip(config, weights)
    torch.manual_seed(1)
    pixels, ids = torch.randn(3, 3, 32, 32), torch.randint(1, 40_000, (3, 12))
    ids[:, 7], ids[:, 8:] = 49407, 0
    with torch.inference_mode():
        theirs = F.cosine_similarity(model.encode_image(pixels), model.encode_text(ids))
        ours = F.cosine_similarity(
            converted.get_image_features(pixel_values=pixels).pooler_output,
            converted.get_text_features(input_ids=ids).pooler_output,
        )
    assert (ours - theirs).abs().max() <= 1e-6


def test_open_clip_does_not_score_with_random_weights(open_clip_model, tmp_path):
    _, config, _ = open_clip_model
    for model, pretrained in ((config, "no-such-tag"), ("local-dir:" + str(tmp_path / "empty"), None)):
        with pytest.raises(ValueError, match="open_clip cannot load"):
            ClipScore(model, backend="open_clip", pretrained=pretrained, device="cpu")(["a"], [picture(0)])
    folder = tmp_path / "no weights"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(ValueError, match="open_clip cannot load"):
        ClipScore(f"local-dir:{folder}", backend="open_clip", device="cpu")(["a"], [picture(0)])
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        ClipScore("nowhere.json", backend="open_clip", pretrained="x", device="cpu")(["a"], [picture(0)])

"""``clip_score`` by open_clip, and by transformers from open_clip's files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from unigrpo.rewards.clip import ClipScore

from ..support.tiny_scorers import CLIP, Log, clip, clip_refused, clip_tokenizer, clip_weights, picture


pytestmark = pytest.mark.golden


def test_a_folder_of_open_clip_on_transformers(tmp_path):
    """The golden's model in open_clip's layout, with a tokenizer of which all ids are in its vocabulary."""
    config, weights = tmp_path / "open_clip_config.json", tmp_path / "open_clip_pytorch_model.bin"
    torch.save(clip_weights(), weights)
    config.write_text(json.dumps({"model_cfg": CLIP["gelu"]["config"], "preprocess_cfg": {}}))
    clip_refused(r"no tokenizer.*`processor`", tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    texts, images = ["a b", "c"], [picture(0), picture(1)]
    by_folder = clip(tmp_path)(texts, images)
    by_file = clip(config, pretrained=str(weights), processor=str(tmp_path))(texts, images)
    assert by_folder == pytest.approx(by_file, abs=1e-4)
    assert None not in by_folder and by_folder[0] != by_folder[1]
    weights.unlink()
    clip_refused("`pretrained`", tmp_path)


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
    log, scorer = Log(), clip(config, backend="open_clip", pretrained=weights, batch_size=2)
    texts = ["a red cat", "a green hill", " ".join(["dog"] * 11)]
    images = [picture(0, (40, 32)), picture(1), picture(2, mode="L")]
    with pytest.warns(UserWarning, match="13 tokens and only the first 12 count"):
        scores = scorer(texts, images, log_metric=log)
    preprocess = open_clip.image_transform(32, is_train=False, interpolation="bicubic", resize_mode="shortest")
    pixels = torch.stack([preprocess(image.convert("RGB")) for image in images])
    with torch.inference_mode():
        embeds = model.encode_image(pixels), model.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts, 12))
    assert scores == pytest.approx((100 * F.cosine_similarity(*embeds)).tolist(), abs=1e-3)
    assert len({round(score, 3) for score in scores}) == 3
    assert log == {"clip_score/truncated_frac": pytest.approx(1 / 3), "clip_score/failed": 0.0}


def test_the_open_clip_backend_with_a_tokenizer_of_the_hub(open_clip_model, tmp_path):
    model, _, weights = open_clip_model
    folder, tokenizer, log = tmp_path / "model", clip_tokenizer(), Log()
    tokenizer.save_pretrained(folder)
    Path(weights).rename(folder / "open_clip_pytorch_model.bin")
    text = {**TINY["text_cfg"], "hf_tokenizer_name": "in this folder"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**TINY, "text_cfg": text}}))
    scorer, texts = clip(f"local-dir:{folder}", backend="open_clip"), ["a b", "c " * 12]
    with pytest.warns(UserWarning, match="14 tokens and only the first 12 count"):
        scores = scorer(texts, [picture(0), picture(1)], log_metric=log)
    assert log["clip_score/truncated_frac"] == 0.5
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=12, return_tensors="pt")["input_ids"]
    pixels = torch.stack([scorer._scorer.pixels(picture(seed)) for seed in (0, 1)])
    with torch.inference_mode():
        embeds = model.encode_image(pixels), model.encode_text(ids)
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
    folder = tmp_path / "no weights"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    for model, pretrained, match in (
        (config, "no-such-tag", "open_clip cannot load"),
        (f"local-dir:{tmp_path / 'empty'}", None, "open_clip cannot load"),
        (f"local-dir:{folder}", None, "open_clip cannot load"),
        ("nowhere.json", "x", r"nowhere\.json"),
    ):
        clip_refused(match, model, backend="open_clip", pretrained=pretrained)

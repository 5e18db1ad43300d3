"""The shipped CLIP knows each picture's caption; its pieces load as any CLIP's; its training script is repeatable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from unigrpo.data.pictures import to_images
from unigrpo.models.magvit import MagvitV2
from unigrpo.toy import emoji
from unigrpo.toy.making import image_tokenizer
from unigrpo.toy.making.clip import (
    build_image_processor,
    build_model,
    build_tokenizer,
    checkpoint,
    encode,
    load,
    similarity,
    train,
)
from unigrpo.toy.making.clip_worlds import edits, fits, retrieval_accuracy, shapes_source
from unigrpo.toy.making.image_tokenizer import gallery, reconstruct
from unigrpo.toy.shapes import FORMS, QUESTIONS, SIDE, SPECS, WORDS, Spec, caption

from ..support.tolerances import assert_rounding


@pytest.fixture(scope="module")
def shipped() -> CLIPModel:
    return load(checkpoint("shapes"))[0]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoint("shapes"))


@pytest.fixture(scope="module")
def pixels():
    return gallery(1, 78)[1]


def test_the_shipped_clip_finds_the_caption_of_a_picture(shipped, tokenizer, pixels):
    magvit = MagvitV2.from_pretrained(image_tokenizer.checkpoint("shapes"))

    def near(shown, texts):
        return similarity(shipped, shown, encode(tokenizer, texts))

    assert retrieval_accuracy(near, pixels) >= 0.97
    assert retrieval_accuracy(near, reconstruct(magvit, pixels)) >= 0.92


def cosines(model, pixels, tokenizer, texts) -> torch.Tensor:
    ids = encode(tokenizer, texts)
    image = model.get_image_features(pixel_values=pixels).pooler_output
    return F.cosine_similarity(image, model.get_text_features(input_ids=ids).pooler_output)


@torch.no_grad()
def test_a_true_caption_is_worth_more_than_one_with_another_colour_or_shape(shipped, tokenizer, pixels):
    true = cosines(shipped, pixels, tokenizer, [caption(spec) for spec in SPECS])
    colours = {
        "red": "green",
        "green": "blue",
        "blue": "yellow",
        "yellow": "purple",
        "purple": "white",
        "white": "red",
    }
    shapes = {"circle": "square", "square": "triangle", "triangle": "cross", "cross": "circle"}
    for field, other in (("colour", colours), ("shape", shapes)):
        wrong = [caption(spec).replace(getattr(spec, field), other[getattr(spec, field)]) for spec in SPECS]
        difference = true - cosines(shipped, pixels, tokenizer, wrong)
        assert difference.mean() > 0.15 and (difference > 0).float().mean() > 0.97
    black = torch.full_like(pixels, -0.9)
    assert cosines(shipped, black, tokenizer, [caption(spec) for spec in SPECS]).mean() < true.mean() - 0.4


def test_the_shipped_tokenizer_is_the_built_one(shipped, tokenizer):
    texts = [caption(spec, form) for spec in SPECS for form in FORMS] + list(QUESTIONS.values())
    assert torch.equal(encode(tokenizer, texts), encode(build_tokenizer(WORDS), texts))
    assert tokenizer.unk_token_id not in encode(tokenizer, texts)
    config = shipped.config.text_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 3, 0)


def test_the_image_processor_gives_the_pixels_of_the_training(pixels):
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint("shapes"))
    seen = processor(images=to_images(pixels[:8]), return_tensors="pt")["pixel_values"]
    assert_rounding(torch.as_tensor(seen), pixels[:8])
    assert processor.to_dict() == build_image_processor(SIDE).to_dict()


def test_which_captions_are_true_of_which_specs():
    first, second = Spec("small", "red", "circle", "left"), Spec("large", "red", "circle", "left")
    assert [fits(first, form, first) for form in FORMS] == [True] * 4
    for said, shown in ((first, second), (second, first)):
        assert [fits(said, form, shown) for form in FORMS] == [False, False, True, True]
    assert not fits(first, "short", Spec("small", "red", "cross", "left"))


@pytest.mark.parametrize("split", emoji.SPLITS)
def test_an_edit_changes_one_thing_and_no_training_edit_is_held_out(split):
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = emoji.some_scene(split, rng)
        found = edits(scene, rng, split)
        assert "replaced" in found and (scene.second is None or set(found) == {"swap", "layout", "replaced"})
        for kind, other in found.items():
            changed = {
                name for name in ("relation", "first", "second") if getattr(scene, name) != getattr(other, name)
            }
            assert (
                changed
                == {
                    "swap": {"first", "second"},
                    "layout": {"relation"},
                    "count": {"relation"},
                    "replaced": changed & {"first", "second"},
                }[kind]
            )
            assert kind != "replaced" or len(changed) == 1
            assert split == "test" or emoji.split_of(other) == "train"


@pytest.mark.slow  # Nothing that ships runs it: the checkpoint that it made is tested above.
def test_a_few_steps_learn_repeat_and_leave_the_global_stream_alone():
    magvit, words = MagvitV2.from_pretrained(image_tokenizer.checkpoint("shapes")), build_tokenizer(WORDS)

    def run(steps: int):
        generator = torch.Generator().manual_seed(3)
        model = build_model(words, SIDE, generator=generator)
        draw = shapes_source(magvit, generator, per_spec=1)
        arguments = {"steps": steps, "batch_size": 32, "learning_rate": 2e-3}
        return model, train(model, words, draw, **arguments, generator=generator)

    before = torch.get_rng_state()
    _, first = run(1)
    model, last = run(25)
    again, _ = run(25)
    assert torch.equal(torch.get_rng_state(), before)
    assert last < first
    with torch.no_grad():
        ids, shown = encode(words, ["a red circle"]), gallery(1, 0)[1][:4]
        assert_rounding(similarity(model, shown, ids), similarity(again, shown, ids))

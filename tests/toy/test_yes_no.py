"""The model that answers about shapes: its questions are right, its words are known, and it learns; real servers: ``test_vllm``."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from unigrpo.data.pictures import to_images, to_pixels
from unigrpo.models.magvit import MagvitV2
from unigrpo.rewards.vqa import QUESTION
from unigrpo.toy import shapes
from unigrpo.toy.making import clip, image_tokenizer
from unigrpo.toy.making.yes_no import (
    ASKED,
    CHOICES,
    Lessons,
    build_model,
    build_processor,
    next_word,
    save,
    train,
)
from unigrpo.toy.pixel_check import inspect


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def lessons():
    magvit = MagvitV2.from_pretrained(image_tokenizer.checkpoint("shapes"))
    return Lessons(magvit, torch.Generator().manual_seed(0), per_spec=1)


@pytest.fixture
def model(processor):
    eyes = clip.load(clip.checkpoint("shapes"))[0]
    return build_model(processor.tokenizer, eyes, generator=torch.Generator().manual_seed(1))


@pytest.mark.smoke
def test_answers_are_what_the_pixels_say(lessons):
    """Read from the pictures by the check that knows neither specs nor captions; all of their words are tokens."""
    pixels, asked, answers = lessons.draw(300)
    fields = {question: field for field, question in ASKED.items()}
    wrong = 0
    for image, question, answer in zip(to_images(pixels), asked, answers, strict=True):
        seen = inspect(image)
        if question in fields:
            wrong += getattr(seen, fields[question]) != answer
            continue
        said = re.fullmatch(re.escape(QUESTION).replace(re.escape("{prompt}"), "(.*)"), question)[1].split()
        shown = {seen.colour, seen.shape, seen.size, seen.position}
        true = all(word in shown for word in said if any(word in words for words in CHOICES.values()))
        wrong += (answer == "yes") != true
    assert wrong <= 3, "the check misreads a restored picture now and then"
    assert 0.25 < answers.count("yes") / len(answers) < 0.45 > answers.count("no") / len(answers) > 0.25


def test_every_word_is_known(processor, lessons):
    _, asked, answers = lessons.draw(200)
    unknown = processor.tokenizer.unk_token_id
    assert not [text for text in [*asked, *answers] if unknown in processor.tokenizer(text)["input_ids"]]
    assert all(len(processor.tokenizer(answer)["input_ids"]) == 1 for answer in answers)


def test_a_server_reads_what_was_trained(tmp_path, model, processor):
    """The saved processor makes of a chat message with a picture the input of training, and the weights come back."""
    spec = shapes.SPECS[7]
    image = shapes.render(spec, np.random.default_rng(0))
    question = QUESTION.format(prompt=shapes.caption(spec))
    save(model.eval(), processor, tmp_path)
    again, reader = LlavaForConditionalGeneration.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    inputs = reader.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        served = again(**inputs).logits[0, -1]
        trained = next_word(model, processor, to_pixels([image]), [question])[0]
    assert torch.allclose(served, trained, atol=1e-5)


def test_it_learns_and_its_eyes_stay(model, processor, lessons):
    eyes = {name: value.clone() for name, value in model.model.vision_tower.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    losses = [train(model, processor, lessons, steps=steps, generator=generator, state=None) for steps in (1, 12)]
    assert losses[1] < losses[0] - 0.3
    assert all(torch.equal(value, eyes[name]) for name, value in model.model.vision_tower.state_dict().items())

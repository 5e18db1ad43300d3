"""Nothing that ``PreTrainedModel`` and ``Trainer`` bring is swallowed, and a forward reads no argument that it does not know."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import PreTrainedModel, Trainer

import unigrpo.models.inherited as of_model
import unigrpo.training.inherited_methods as of_trainer

from ..support.given_runs import given_trainer
from ..support.tiny import tiny_model


pytestmark = pytest.mark.smoke

IDS = torch.arange(8)[None]


@pytest.mark.parametrize(("sorted_in", "kind"), [(of_model, PreTrainedModel), (of_trainer, Trainer)])
def test_every_inherited_name_is_sorted_once(sorted_in, kind):
    names = sorted_in.unsorted_names(kind)
    assert names == [], sorted_in.UNSORTED.format(names=names)
    later = type("Later", (kind,), {"vocalise": None})
    assert sorted_in.unsorted_names(later) == ["vocalise"]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("name", of_model.REFUSED)
def test_what_would_break_the_model_is_refused_at_the_call(name, model):
    head, rows = model.get_output_embeddings(), model.config.vocab_size
    with pytest.raises(NotImplementedError, match=name) as caught:
        getattr(model, name)(300)
    assert str(caught.value).endswith(of_model.REFUSED[name])
    assert model.get_output_embeddings() is head and model.config.vocab_size == rows


@pytest.mark.parametrize("name", of_trainer.REFUSED)
def test_what_has_no_meaning_for_the_trainer_is_refused_with_the_cure(name, make_trainer, tmp_path):
    said = {}
    for kind, trainer in (("rl", make_trainer()), ("sft", given_trainer(tmp_path))):
        with pytest.raises(ValueError, match=rf"^{name}\(\) has no meaning for this trainer: ") as caught:
            getattr(trainer, name)(None)
        said[kind] = str(caught.value)
    assert not re.search("{|score|reward|unigrpo train", said["sft"]) and not re.search(
        "{|loss|unigrpo sft", said["rl"]
    )
    assert (said["rl"] == said["sft"]) == (name in ("get_eval_dataloader", "get_test_dataloader"))


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"output_attentions": True}, "keeps no attention weights"),
        ({"use_cache": True}, "kept by cache"),
        ({"return_dict": False}, "MaskedDiffusionOutput"),
        ({"token_type_ids": torch.ones_like(IDS)}, "no token types"),
        ({"attention_maks": IDS}, "did you mean 'attention_mask'"),
        ({"positions": IDS}, "did you mean 'position_ids'"),
        ({"xyz": None}, "it takes input_ids, attention_mask"),
    ],
)
def test_a_forward_takes_no_argument_that_it_does_not_read(arguments, cure, model):
    with pytest.raises(TypeError, match=f"forward\\(\\) takes no '{next(iter(arguments))}'") as caught:
        model(IDS, **arguments)
    assert cure in str(caught.value)


def test_arguments_of_others_that_are_switched_off_change_nothing(model):
    """As peft and tokenizers give them."""
    off = {"output_attentions": None, "return_dict": True, "use_cache": False}
    off["token_type_ids"] = torch.zeros_like(IDS)
    assert model(IDS, **off).logits.equal(model(IDS).logits)


ADDITIVE = torch.zeros(1, 1, 8, 8).masked_fill(torch.eye(8, dtype=torch.bool), torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    "mask",
    [
        ADDITIVE,
        ADDITIVE[:, 0, 0],
        torch.ones(1, 8),
        torch.ones(8, dtype=torch.long),
        torch.ones(1, 1, 8, 8, dtype=torch.bool),
        torch.full((1, 8), -10_000),
        torch.full((1, 8), 2),
    ],
)
def test_an_additive_mask_is_not_read_the_other_way_round(mask, model):
    with pytest.raises(ValueError, match=r"attention_mask is .* an additive mask is not read"):
        model(IDS, attention_mask=mask)


def test_masks_of_truth_values_and_of_whole_numbers_are_one(model):
    mask = torch.tensor([[False] * 3 + [True] * 5])
    expected = model(IDS, attention_mask=mask).logits
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert model(IDS, attention_mask=mask.to(dtype)).logits.equal(expected)
    assert not model(IDS).logits.equal(expected)

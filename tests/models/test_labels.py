"""Labels, as a plain Trainer gives them: the loss, its weights, and the collator of a noised batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import unigrpo
from unigrpo.algorithm.denoising import MaskedDenoising
from unigrpo.models.elsewhere import labelled

from ..support.tolerances import FP32
from .test_elsewhere import IDS, LABELS, MASK, any_network, model_of_a_family  # noqa: F401


def test_a_label_that_no_shifted_logit_predicts_is_refused():
    labels = torch.tensor([[5, 6, 7], [-100, 6, 7]])
    select, targets = labelled(labels[1:], 1, draw=None)
    assert select.tolist() == [[True, True, False]] and targets.tolist() == [6, 7]
    with pytest.raises(ValueError, match="the first of a row cannot be scored; set its label to -100"):
        labelled(labels, 1, draw=None)


def test_labels_give_cross_entropy_and_its_gradient(network):
    given = {"attention_mask": MASK}
    network(IDS, labels=LABELS, **given).loss.backward()
    own = {name: parameter.grad for name, parameter in network.named_parameters()}
    loss = network(IDS, labels=LABELS, **given).loss
    network.zero_grad()
    expected = F.cross_entropy(network(IDS, **given).logits.flatten(0, 1), LABELS.flatten())
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=FP32, atol=0)
    largest = max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(own[name], parameter.grad, rtol=0, atol=FP32 * largest, msg=name)
    assert network(IDS, labels=torch.full_like(IDS, -100)).loss.item() == 0.0


@torch.no_grad()
def test_loss_weights_weigh_each_label(network):
    weights = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(0))
    each = F.cross_entropy(network(IDS).logits.transpose(1, 2), LABELS, reduction="none")
    found = network(IDS, labels=LABELS, loss_weights=weights).loss
    torch.testing.assert_close(found, (weights * each).sum() / 2, rtol=FP32, atol=0)
    with pytest.raises(ValueError, match="labels and select are given"):
        network(IDS, labels=LABELS, select=LABELS != -100)


def collator(**options):
    return unigrpo.MaskedDenoisingCollator(mask_token_id=184, pad_token_id=161, **options)


@pytest.mark.parametrize("denominator", ["answer", "row", "masked", "tokens"])
@pytest.mark.parametrize("law", ["linear", "cosine"])
@torch.no_grad()
def test_a_collated_batch_has_the_objectives_loss(denominator, law, model):
    weight = "1/p" if law == "linear" else "mean"
    objective = MaskedDenoising(law=law, denominator=denominator, weight=weight, mask_ratio_min=0.3)
    rows = [
        {"input_ids": list(range(9)), "labels": [-100] * 3 + list(range(3, 9))},
        {"input_ids": list(range(20, 32))},
    ]
    batch = collator(objective=objective)(rows)
    hidden = batch["input_ids"] == 184
    assert hidden.equal(batch["labels"] != -100) and bool(hidden.any())
    assert not bool(hidden[0, :3].any()) and not bool(hidden[0, 9:].any()), "the prompt and padding are shown"
    logps = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    divisor = float((batch["labels"] != -100).sum()) if denominator == "tokens" else float(len(rows))
    total, shares = 0.0, 0.0
    for row, own in enumerate(rows):
        ids = torch.tensor(own["input_ids"])
        trained = torch.tensor(own.get("labels", own["input_ids"])) != -100
        draw, scale = objective.weigh(hidden[row, : len(ids)], trained, 1.0), 1.0
        if law == "linear":
            scale = float(batch["loss_weights"][row].max()) / float(draw.weight.max()) * (divisor / len(rows))
        total += -float((scale * draw.weight * logps[row, : len(ids)].gather(1, ids[:, None])[:, 0]).sum())
        shares += draw.share
    assert float(model(**batch).loss) == pytest.approx(total / shares, rel=1e-5)


def test_noise_differs_between_batches_rows_and_seeds_and_draws_nothing_from_torch():
    def collated(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        before, own = torch.get_rng_state(), collator()
        batches = [own([{"input_ids": list(range(64))}] * 2)["input_ids"] for _ in range(2)]
        assert torch.get_rng_state().equal(before)
        return [row for batch in batches for row in batch]

    first, again, other = collated(0), collated(0), collated(1)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    every = [tuple(row.tolist()) for row in (*first, *other)]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("row", "said"),
    [({"prompt": "w1"}, "has no input_ids, only"), ({"input_ids": [1, 2], "labels": [1]}, "2 input_ids, 1 labels")],
)
def test_a_row_that_cannot_be_collated_is_named(row, said):
    with pytest.raises(ValueError, match=said):
        collator()([{"input_ids": [1]}, row])


@pytest.mark.parametrize("adapter", [False, True])
def test_a_plain_trainer_lowers_the_loss(adapter, model, tmp_path):
    own = collator(objective=MaskedDenoising(weight="mean"))
    data = [{"input_ids": [(row + place) % 4 for place in range(12)]} for row in range(8)]
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    options = {"max_steps": 20, "learning_rate": 1e-2, "logging_steps": 1, "report_to": "none", "save_strategy": "no"}
    options |= {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = TrainingArguments(str(tmp_path), **options)
    trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data, data_collator=own)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    own._batches = 0
    assert trainer.evaluate()["eval_loss"] < 0.8 * first
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(first, rel=0.5), "accumulated micro-batches are averaged"

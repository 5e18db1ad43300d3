"""Runs of Lumina-DiMOO through the trainer of every family: the laws, two steps, a checkpoint that resumes and reopens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer, load_policy
from unigrpo.data.pictures import fit_image, to_pixels
from unigrpo.training.window import rebuild_window

from ..support.given_runs import SMALL
from ..support.images import GUIDED, assert_on_policy, picture
from ..support.laws import difference, first_window, total_and_gradient
from ..support.runs import history
from ..support.tiny import low_ids
from ..support.tiny_lumina import OFFSET, SPECIAL, Cells, lumina_rows, tiny_lumina


LUMINA = {"guidance_scale": 4.0, "sampler": {"name": "maskgit", "remask_noise_decay": "constant"}}


def brightened(completions, images, **kwargs) -> list[float]:
    """How much brighter the picture is than the one that came in, in grey levels."""
    pairs = zip(completions, images, strict=True)
    return [float(np.mean(made) - np.mean(shown[0])) for made, shown in pairs]


def options(kind: str, count: int = 4, t2i: dict | None = None, i2i: dict | None = None, **changes) -> dict:
    """Arguments of ``make_trainer``; pictures have 2 x 3 codes."""
    model, policy = tiny_lumina(**changes.pop("fields", {}))
    kinds = {"mixed": ("t2i", "mmu"), "edits": ("i2i", "mmu")}.get(kind, (kind,))
    rows = [row for task in kinds for row in lumina_rows(task, count // len(kinds))]
    return {
        "model": model,
        "processor": policy.processor,
        "rows": rows,
        "image_size": [32, 48],
        "image_tokenizer": Cells(),
        "shuffle_dataset": False,
        "task_overrides": {
            task: {"steps": 3, **LUMINA, **own} for task, own in {"t2i": t2i or {}, "i2i": i2i or {}}.items()
        },
        **changes,
    }


@pytest.mark.smoke
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("kind", "pictures"),
    [
        ("mixed", {}),
        ("mixed", GUIDED),
        ("edits", {"image_guidance_scale": 2.0}),
        ("edits", GUIDED | {"guidance_scale": 0.5, "image_guidance_scale": 0.5}),
    ],
)
def test_runs_start_at_ratio_one_and_kl_zero(make_trainer, kind, pictures, lora):
    trainer = make_trainer(lora=lora, **options(kind, t2i=pictures, i2i=pictures, num_noise_samples=2))
    window, drawn = first_window(trainer), "i2i" if kind == "edits" else "t2i"
    assert {row.task for row in window.experiences} == {drawn, "mmu"}
    assert_on_policy(trainer, window, {drawn})


def test_a_question_stands_behind_the_codes_of_its_picture_row_by_row(make_trainer):
    trainer = make_trainer(**options("mmu"))
    for row in first_window(trainer).experiences:
        start = row.ids.tolist().index(SPECIAL["boi"]) + 1
        lines = row.ids[start : start + 8].reshape(2, 4)
        assert lines[:, 3].tolist() == [SPECIAL["newline"]] * 2 and row.ids[start + 8] == SPECIAL["eoi"]
        pixels = to_pixels([fit_image(picture(row.index // trainer.args.num_generations), 32, 48, "squash")])
        assert torch.equal(lines[:, :3].flatten() - OFFSET, Cells().encode(pixels)[0])


def test_attended_padding_keeps_the_laws(make_trainer):
    fields = {"attn_mask_mode": "none"}
    for kind, drawn in (("mixed", "t2i"), ("edits", "i2i")):
        plain = {drawn: {"guidance_scale": 0.0}}
        trainer = make_trainer(**options(kind, **plain, fields=fields))
        window = first_window(trainer)
        assert trainer.policy.attends_padding and len({len(row.ids) for row in window.experiences}) == 2
        assert_on_policy(trainer, window, {drawn})


@pytest.mark.parametrize("kind", ["t2i", "mmu", "i2i"])
def test_two_steps_then_a_checkpoint_resumes_and_reopens(make_trainer, tmp_path, kind):
    model, policy = tiny_lumina()
    model.save_pretrained(tmp_path / "base")
    policy.processor.save_pretrained(tmp_path / "base")
    own = {
        **options(kind, i2i={"image_guidance_scale": 2.0}),
        "model": str(tmp_path / "base"),
        "processor": None,
        "max_steps": 2,
    }
    own |= {"lora": kind != "t2i", "rewards": brightened if kind == "i2i" else low_ids}
    whole = make_trainer(save_strategy="steps", save_steps=1, **own)
    whole.train()
    again = make_trainer(output_dir=str(tmp_path / "again"), **own)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert history(again)[2] == history(whole)[2]
    whole.save_model()
    opened = load_policy(str(tmp_path / "run"), device="cpu", image_tokenizer=Cells())
    ids = policy.encode(lumina_rows("t2i", 1), "t2i", image_grid=(2, 3)).ids
    with torch.no_grad():
        found, before = opened.model(ids).logits, model(ids).logits
        torch.testing.assert_close(found, whole.model(ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, before)
    asked = {"task": kind} if kind == "t2i" else {"task": kind, "images": picture(0)}
    length = {"max_completion_length": 4} if kind == "mmu" else {}
    (answer,) = opened.generate("w3 w4", image_size=[32, 48], steps=2, **asked, **length)
    assert isinstance(answer, str) if kind == "mmu" else answer.size == (48, 32)


def test_order_of_rows_changes_nothing(make_trainer):
    trainer = make_trainer(**options("mixed", 8, steps_per_generation=2, num_generations=2))
    window = first_window(trainer)
    total, gradient = total_and_gradient(trainer, window)
    other = rebuild_window(trainer.pipeline(), window.experiences, [7, 3, 0, 5, 1, 6, 2, 4])
    other_total, other_gradient = total_and_gradient(trainer, other)
    assert abs(total - other_total) < 1e-5 and difference(gradient, other_gradient) < 1e-5


def test_given_pictures_and_answers_are_learned(tmp_path):
    model, policy = tiny_lumina()
    rows = [{**row, "image": picture(number)} for number, row in enumerate(lumina_rows("t2i", 2))]
    rows += [{**row, "completion": f"w{5 + number}"} for number, row in enumerate(lumina_rows("mmu", 2))]
    rows += [{**row, "edited_image": picture(7 + number)} for number, row in enumerate(lumina_rows("i2i", 2))]
    changed = {"max_length": 80, "max_steps": 12, "learning_rate": 2e-2, "image_size": [32, 48], "objective": "lumina"}
    args = MaskedDenoisingConfig(str(tmp_path / "run"), image_tokenizer=Cells(), **{**SMALL, **changed})
    trainer = MaskedDenoisingTrainer(model, args, rows, rows, processing_class=policy.processor)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before

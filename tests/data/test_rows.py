"""The window sampler and the dataset checks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, List
from datasets import Image as ImageFeature
from PIL import Image

from unigrpo.data.rows import check_dataset, undecoded
from unigrpo.training.loader import WindowLoader, WindowSampler

from ..support.images import tiny_tokenizer
from ..support.pictures import encoded, picture, png_header


def arguments(**changes) -> SimpleNamespace:
    """Two prompts a rollout, three answers each, two micro-steps, two inner updates."""
    values = {"generation_batch_size": 6, "num_generations": 3, "steps_per_generation": 2, "num_iterations": 2}
    values |= {"shuffle_dataset": True, "seed": 42, "data_seed": None, "world_size": 1}
    return SimpleNamespace(**{**values, **changes})


def test_each_prompt_stands_g_times_in_a_row():
    batches = list(WindowSampler(4, arguments(shuffle_dataset=False)))
    assert batches == [[0, 0, 0, 1, 1, 1], [], [], [], [2, 2, 2, 3, 3, 3], [], [], []]


def test_only_whole_windows_whose_remainder_changes_with_the_epoch():
    sampler, left_out = WindowSampler(5, arguments()), set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        used = [index for batch in batches for index in batch]
        assert len(sampler) == len(batches) == 8
        assert len(set(used)) == 4 and all(used.count(index) == 3 for index in used)
        left_out |= set(range(5)) - set(used)
    assert left_out == set(range(5))


def test_epochs_reshuffle_deterministically():
    one, two = WindowSampler(8, arguments()), WindowSampler(8, arguments())
    first = list(one)
    assert list(one) == first
    one.set_epoch(1)
    second = list(one)
    assert second != first
    two.set_epoch(1)
    assert list(two) == second
    assert list(WindowSampler(8, arguments(seed=1))) != first
    assert list(WindowSampler(8, arguments(seed=1, data_seed=42))) == first
    assert sorted(index for batch in first for index in batch) == sorted(list(range(8)) * 3)


def test_ranks_take_their_slices_of_one_rollout():
    whole = list(WindowSampler(8, arguments(generation_batch_size=12)))
    split = arguments(generation_batch_size=12, world_size=2)
    ranks = [list(WindowSampler(8, split, rank)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    assert all(len(a) == len(b) for a, b in zip(*ranks, strict=True))
    assert len(ranks[0][0]) == 6


def test_loader_hands_out_rows_and_passes_the_epoch_on():
    rows = [{"prompt": f"p{i}"} for i in range(4)]
    loader = WindowLoader(rows, WindowSampler(4, arguments()))
    first = list(loader)
    assert [len(batch) for batch in first] == [6, 0, 0, 0] * 2
    assert {row["prompt"] for batch in first for row in batch} == {"p0", "p1", "p2", "p3"}
    loader.set_epoch(1)
    assert list(loader) != first


GOOD = {"prompt": "hello"}
BAD = {
    "empty prompt": ([GOOD, {"prompt": ""}], r"train\[1\]\['prompt'\] must be text or chat messages, got ''"),
    "no prompt": ([GOOD, {"prompt": None}], r"train\[1\]\['prompt'\].*None"),
    "number": ([{"prompt": 3}], r"train\[0\]\['prompt'\].*got 3"),
    "message": ([GOOD, GOOD, {"prompt": [{"role": "user"}]}], r"train\[2\]\['prompt'\].*'role' and 'content'"),
    "role": ([{"prompt": [{"role": None, "content": "x"}]}], r"train\[0\]\['prompt'\]: a message has role None; give"),
    "unread part": (
        [{"prompt": [{"role": "user", "content": [{"type": "video"}]}]}],
        r"train\[0\]\['prompt'\] has a part of type 'video'",
    ),
    "unread picture": (
        [{"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}]}],
        r"type 'image', and task 'text' of this row reads no picture: put it into the column 'image'",
    ),
    "strings": ([{"prompt": ["a", "b"]}], r"train\[0\]\['prompt'\].*'role' and 'content'"),
    "task": ([GOOD, {"prompt": "x", "task": "image"}], r"train\[1\]\['task'\]='image'.*text.*mmu.*t2i"),
    "column": ([{"question": "x"}], r"no 'prompt' column, only \['question'\]; rename"),
    "nothing": ([], r"train is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(case):
    rows, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        check_dataset(rows, "train")


# ---- rows that a run cannot use are found when the trainer is made ----

PICTURES = {"image_tokenizer": tiny_tokenizer(), "image_size": 64}
FINE = {"prompt": "w1 w2", "task": "mmu", "image": encoded(picture())}
LONG = " ".join(["w1"] * 511)
FORCED = {"t2i": {"sampler": "semi_autoregressive"}}
WHERE = r"train_dataset\[1\]"

ROWS = {
    "corrupt": ({"image": encoded(picture())[:90]}, rf"{WHERE}\['image'\]: .*(damaged|cannot be read)", {}),
    "no picture": ({"image": b"<html>404</html>"}, rf"{WHERE}\['image'\]: not an image file", {}),
    "no bytes": ({"image": b""}, rf"{WHERE}\['image'\]: not an image file", {}),
    "placeholder": ({"image": encoded(Image.new("RGB", (1, 1)))}, rf"{WHERE}\['image'\]: 1 x 1 pixels.*at least 8", {}),
    "giant": ({"image": png_header(20_000, 20_000)}, rf"{WHERE}\['image'\]: .*at most 80,000,000 pixels", {}),
    "missing": ({"image": None}, rf"{WHERE} is an image-understanding row without an image; give an 'image'", {}),
    "long caption": ({"prompt": LONG, "task": "t2i"}, rf"{WHERE}\['prompt'\]: prompt of 511 tokens is longer than the 510", {}),
    "long question": (
        {"prompt": LONG, "image": encoded(picture())},
        rf"{WHERE}\['prompt'\]: prompt of \d+ tokens is longer than the \d+ that fit.*max_prompt_length",
        {"max_prompt_length": 60},
    ),
    "no room": (
        {"image": encoded(picture())},
        r"train_dataset\[0\]: an image of 16 tokens leaves no room.*lower image_size",
        {"max_prompt_length": 19},
    ),
    "empty": ({"prompt": "", "task": "t2i"}, rf"{WHERE}\['prompt'\] must be text or chat messages, got ''", {}),
    "blank": ({"prompt": "  ", "image": encoded(picture())}, rf"{WHERE}\['prompt'\] must be text", {}),
    "task": ({"task": "i2t"}, rf"{WHERE}\['task'\]='i2t': choose one of", {}),
    "sampler": (
        {"task": "t2i"},
        rf"{WHERE}: sampler='semi_autoregressive' cannot answer task 't2i'; set task_overrides.t2i.sampler.*emerge",
        {"task_overrides": FORCED},
    ),
    "one sampler": ({"task": "t2i"}, r"\[0\]: sampler='emerge' cannot answer task '(mmu|text)'", {"sampler": "emerge"}),
    "transform": (
        {"image": encoded(picture()), "image_transform": "stretch"},
        rf"{WHERE}\['image_transform'\]='stretch' is not valid: .*squash",
        {},
    ),
    "size": ({"task": "t2i"}, r"image_size=40: image height=40 must be a multiple of 16", {"image_size": 40}),
}  # fmt: skip


def both_rows(row: dict) -> list[dict]:
    keys = [*FINE, *(key for key in row if key not in FINE)]
    return [{key: own.get(key) for key in keys} for own in (FINE, {"prompt": "w1", "task": None, **row})]


@pytest.mark.parametrize("stored", [False, True], ids=["list", "dataset"])
@pytest.mark.parametrize("case", ROWS)
def test_the_trainer_names_a_row_it_cannot_use(make_trainer, case, stored):
    row, message, changes = ROWS[case]
    row = {"task": "mmu", **row} if "image" in row else row
    rows = both_rows(row)
    if stored:
        rows = Dataset.from_list(rows).cast_column("image", ImageFeature())
    with pytest.raises(ValueError, match=message):
        make_trainer(rows=rows, **{**PICTURES, **changes})
    evaluated = message.replace(r"train_dataset", r"eval_dataset")
    with pytest.raises(ValueError, match=evaluated):
        make_trainer(eval_rows=rows, **{**PICTURES, **changes})


@pytest.mark.parametrize("stored", [False, True], ids=["list", "dataset"])
def test_several_images_in_a_row_are_refused(make_trainer, stored):
    data = encoded(picture())
    damaged = [{"prompt": "w1", "images": [data]}, {"prompt": "w1", "images": [data[:90]]}]
    several = [{"prompt": "w1", "images": [data]}, {"prompt": "w1", "images": [data, data]}]
    for rows, message in (
        (several, rf"{WHERE}\['images'\] holds 2 images; the policy reads one a prompt"),
        (damaged, rf"{WHERE}\['images'\](\[0\]: | cannot be read)"),
    ):
        if stored:
            rows = Dataset.from_list(rows).cast_column("images", List(ImageFeature()))
        with pytest.raises(ValueError, match=message):
            make_trainer(rows=rows, **PICTURES)


def test_a_dataset_without_an_image_column_names_it(make_trainer):
    rows = [{"prompt": "w1"}, {"prompt": "w1", "task": "mmu"}]
    with pytest.raises(ValueError, match=rf"{WHERE} is an image-understanding row.*'image' or 'images' column"):
        make_trainer(rows=rows, **PICTURES)


def test_a_sampler_of_held_out_rows_must_suit_their_task(make_trainer):
    """A training set may hold other tasks; a wrong name is found too."""
    drawn = [{"prompt": "w1", "task": "t2i"}]
    make_trainer(eval_rows=drawn, eval_sampler="maskgit", **PICTURES)
    with pytest.raises(ValueError, match=r"eval_dataset\[0\]: eval_sampler='maskgit' cannot answer task 'mmu'; set"):
        make_trainer(eval_rows=[FINE], eval_sampler="maskgit", **PICTURES)
    with pytest.raises(ValueError, match=r"eval_dataset\['drawn'\]\[0\]: eval_sampler='semi_autoregressive'"):
        make_trainer(eval_rows={"drawn": drawn}, eval_sampler="semi_autoregressive", **PICTURES)
    with pytest.raises(ValueError, match="eval_sampler='maskgti' is not valid: did you mean 'maskgit'"):
        make_trainer(eval_sampler="maskgti")


def kinds_of_pictures() -> dict[str, Image.Image]:
    """Forms that are converted to RGB."""
    values = np.random.default_rng(1).integers(0, 65536, (20, 30), dtype=np.uint16)
    return {
        "palette": picture(30, 20).quantize(16),
        "transparent": picture(30, 20).convert("RGBA"),
        "16 bits": Image.fromarray(values),
        "grey": picture(30, 20).convert("L"),
        "smallest": picture(8, 8),
    }


@pytest.mark.smoke
@pytest.mark.parametrize("stored", [False, True], ids=["list", "dataset"])
def test_other_forms_of_pictures_are_converted(make_trainer, stored):
    rows = [{"prompt": f"w{i}", "image": encoded(own)} for i, own in enumerate(kinds_of_pictures().values())]
    if stored:
        rows = Dataset.from_list(rows).cast_column("image", ImageFeature())
    trainer = make_trainer(rows=rows, max_steps=1, **PICTURES)
    trainer.train()
    assert {row.task for row in trainer._window.experiences} == {"mmu"}
    assert trainer._window.experiences[0].fill_mask.sum() == 12


def test_pictures_of_a_dataset_stay_encoded():
    """So that a damaged one is met by the check, which names it, and not by the dataset."""
    data = encoded(picture())
    rows = Dataset.from_list([{"prompt": "w", "image": data, "images": [data]}])
    typed = rows.cast_column("image", ImageFeature()).cast_column("images", List(ImageFeature()))
    row = undecoded(typed)[0]
    assert row["image"]["bytes"] == data
    assert row["images"][0].size == picture().size
    again = undecoded(undecoded(typed))
    assert again.features == undecoded(typed).features
    assert undecoded(rows) is rows
    plain = [{"prompt": "w"}]
    assert undecoded(plain) is plain

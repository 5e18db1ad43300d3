"""Rows in every form in which people keep them, for recipes and for both trainers; what cannot be read is one sentence."""

from __future__ import annotations

import bz2
import gzip
import json
import tarfile

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from unigrpo.data import checking
from unigrpo.data.files import open_rows
from unigrpo.data.rows import check_dataset, image_of
from unigrpo.data.tables import rows_of
from unigrpo.errors import RecipeError
from unigrpo.runs.dataset_spec import DatasetSpec, load_rows, prompt_rows
from unigrpo.runs.reach import sources_of
from unigrpo.runs.recipe import parse_recipe
from unigrpo.runs.sft import given_rows

from ..support.given_runs import given_trainer
from ..support.pictures import encoded, picture


ROWS = [{"prompt": f"w{i} w2", "completion": "w5"} for i in range(3)]
CHAT = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1 w2"}]
ANSWER = {"role": "assistant", "content": "w5"}


def lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows=ROWS, sep=","):
    return pd.DataFrame(rows).to_csv(sep=sep, index=False).encode()


def parquet(rows=ROWS):
    return pd.DataFrame(rows).to_parquet()


FILES = {
    "rows.jsonl": lines, "rows.json": lambda: json.dumps(ROWS).encode(), "rows.csv": table, "rows.parquet": parquet,
    "rows.tsv": lambda: table(sep="\t"), "rows.jsonl.gz": lambda: gzip.compress(lines()),
    "rows.csv.bz2": lambda: bz2.compress(table()), "rows.tsv.gz": lambda: gzip.compress(table(sep="\t")),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_kind_has_the_rows(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name]())
    spec = DatasetSpec(path=str(tmp_path / name))
    assert list(load_rows(spec)) == list(given_rows(spec)) == list(rows_of(tmp_path / name, "train_dataset")) == ROWS
    assert list(load_rows(DatasetSpec(path=str(tmp_path / name), split="train[1:]", limit=1))) == ROWS[1:2]


def test_several_files_are_one_dataset_by_a_list_a_pattern_or_a_reader(tmp_path):
    for number, row in enumerate(ROWS):
        (tmp_path / f"part-{number}.jsonl").write_bytes(lines([row]))
    files = [str(tmp_path / f"part-{number}.jsonl") for number in range(3)]
    data = {"rewards": [{"name": "think_format"}], "model": {"path": "builtin:arithmetic"}}
    data |= {"datasets": [{"path": files}, {"path": "json", "data_files": files}]}
    recipe = parse_recipe(data, "here")
    for spec in (*recipe.datasets, DatasetSpec(path=str(tmp_path / "part-*.jsonl"))):
        assert list(load_rows(spec)) == ROWS
    assert f"reads: {files[1]} (datasets)" in sources_of(recipe)


def test_what_datasets_has_saved_is_read_back(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "both")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert list(open_rows(str(tmp_path / "both"), split="test")) == ROWS[:1]
    assert list(open_rows(str(tmp_path / "one"), split="train[:2]")) == ROWS[:2]
    with pytest.raises(ValueError, match=r"no split 'validation', only \['train', 'test'\]; set split"):
        open_rows(str(tmp_path / "both"), split="validation")


def pictures(folder):
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(encoded(picture(16 + number, 16)))
    return folder


@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv", "txt", "tar"])
def test_pictures_with_captions(tmp_path, form):
    folder = pictures(tmp_path / "shapes")
    captions, columns, path = (
        [{"file_name": f"{n}.png", "text": f"w{n}"} for n in range(2)],
        {"prompt": "text"},
        folder,
    )
    if form.startswith("metadata"):
        (folder / form).write_bytes(lines(captions) if form.endswith("jsonl") else table(captions))
    else:
        columns = {}
        for number in range(2):
            (folder / f"{number}.txt").write_text(f"w{number}\n")
    if form == "tar":
        path, columns = tmp_path / "shapes.tar", {"prompt": "txt", "image": "png"}
        with tarfile.open(path, "w") as tar:
            for own in sorted(folder.iterdir()):
                tar.add(own, own.name)
    rows = given_rows(DatasetSpec(path=str(path), task="t2i", column_map=columns))
    assert [row["prompt"].strip() for row in rows] == ["w0", "w1"]
    assert [image_of(row, "row").size for row in rows] == [(16, 16), (17, 16)]


def test_llava_pictures_are_beside_the_file_or_in_their_folder(tmp_path, monkeypatch):
    pictures(tmp_path / "coco")
    chat = [{"from": "human", "value": "<image>\nw1"}, {"from": "gpt", "value": "w5"}]
    beside = [{"id": str(n), "image": f"coco/{n}.png", "conversations": chat} for n in range(2)]
    (tmp_path / "llava.json").write_text(json.dumps([*beside, {"id": "2", "conversations": chat}]))
    rows = given_rows(DatasetSpec(path=str(tmp_path / "llava.json")))
    assert [image_of(row, "row").width for row in list(rows)[:2]] == [16, 17] and rows[2]["image"] is None
    inside = [{"image": "1.png", "conversations": chat}]
    (tmp_path / "inside.json").write_text(json.dumps(inside))
    rows = given_rows(DatasetSpec(path=str(tmp_path / "inside.json"), image_folder=str(tmp_path / "coco")))
    assert image_of(rows[0], "row").width == 17
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco" / "here.json").write_text(json.dumps([{"image": "coco/1.png", "conversations": chat}]))
    assert image_of(given_rows(DatasetSpec(path="coco/here.json"))[0], "row").width == 17
    with pytest.raises(ValueError, match="image_folder 'coca' is not there"):
        given_rows(DatasetSpec(path="inside.json", image_folder="coca"))


BROKEN = {
    "rows.csv": (b"a,b\n1,2\n1,2,3,4\n", r"rows\.csv' cannot be read .*line 3, saw 4.*one line of column names"),
    "latin.csv": ("prompt\ncafé\n".encode("latin1"), r"latin\.csv' cannot be read .*utf-8"),
    "rows.jsonl": (b'{"a": 1}\n{"a":\n', r"rows\.jsonl' cannot be read .*one JSON object a line"),
    "latin.jsonl": ('{"prompt": "café"}\n'.encode("latin1"), r"latin\.jsonl' cannot be read .*UTF.?8"),
    "empty.jsonl": (b"", r"empty\.jsonl' is empty: it needs one row or more"),
    "rows.jsonl.gz": (b"x", r"rows\.jsonl\.gz' cannot be read .*gzip"),
    "rows.parquet": (b"nope", r"rows\.parquet' cannot be read .*too small|rows\.parquet' cannot be read .*smaller"),
    "rows.tar": (b"nope", r"rows\.tar' cannot be read .*KEY\.png"),
    "rows.xlsx": (b"PK", r"rows\.xlsx' is a file of no kind that is read; write it as one of"),
    "more/rows.jsonl": (lines(), "names files of several kinds"),
    "https://x/rows.jsonl": (None, "is an address; fetch it"),
    "*.ndjson": (None, r"does not exist \(a pattern\)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name):
    data, said = BROKEN[name]
    path = name if "://" in name else str(tmp_path / name)
    if data is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    if name.startswith("more"):
        (tmp_path / "rows.csv").write_bytes(table())
        path = [path, str(tmp_path / "rows.csv")]
    with pytest.raises(RecipeError, match=said) as caught:
        load_rows(DatasetSpec(path=path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a[b]c*.jsonl", "-x ?.jsonl", "🦊\n.jsonl"])
def test_a_name_means_its_file_and_no_pattern(tmp_path, name):
    """Beside files that it would mean as a pattern."""
    (tmp_path / "abc.jsonl").write_bytes(lines([{"prompt": "another"}]))
    (tmp_path / name).write_bytes(lines([{"prompt": "this"}]))
    assert list(load_rows(DatasetSpec(path=str(tmp_path / name)))["prompt"]) == ["this"]


def test_a_name_longer_than_names_are_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match="does not exist"):
        load_rows(DatasetSpec(path=str(tmp_path / ("x" * 300 + ".jsonl"))))
    (tmp_path / "rows.jsonl").write_bytes(lines([{"prompt": "w1", "image": "x" * 300}]))
    (row,) = load_rows(DatasetSpec(path=str(tmp_path / "rows.jsonl")))
    with pytest.raises(ValueError, match=r"row.*: no file '"):
        image_of(row, "row")


def test_of_several_files_the_broken_one_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "b.jsonl").write_bytes(b'{"a":\n')
    with pytest.raises(RecipeError, match=r"^dataset '\S+b\.jsonl' cannot be read"):
        load_rows(DatasetSpec(path=str(tmp_path / "*.jsonl")))


# ---- columns of other names, chats ----

ASKED = [{"question": "w1", "answer": "w5"}]


@pytest.mark.parametrize(
    ("read", "rows", "said"),
    [
        (prompt_rows, ASKED, r"no column 'prompt', .*; write column_map: {prompt: question, solution: answer}$"),
        (given_rows, ASKED, r"no column 'prompt' or 'completion', .*; write column_map: {prompt: question, completion: answer}$"),
        (given_rows, [{"prompt": "w1", "response": "w5"}], r"no column 'completion', .*column_map: {completion: response}$"),
        (given_rows, [{"instruction": "w1", "input": "w2", "output": "w5"}], r"say with column_map: {ours: theirs}"),
    ],
)  # fmt: skip
def test_a_recipe_is_told_the_line_to_write(tmp_path, read, rows, said):
    (tmp_path / "rows.jsonl").write_bytes(lines(rows))
    with pytest.raises(RecipeError, match=said):
        read(DatasetSpec(path=str(tmp_path / "rows.jsonl")))


def test_a_script_is_told_the_call_to_make(tmp_path, make_trainer):
    with pytest.raises(ValueError, match=r"rename_columns\({'question': 'prompt', 'answer': 'solution'}\)") as of_rl:
        make_trainer(rows=ASKED)
    with pytest.raises(
        ValueError, match=r"rename_columns\({'question': 'prompt', 'answer': 'completion'}\)"
    ) as of_sft:
        given_trainer(tmp_path, ASKED)
    assert "recipe" not in str(of_rl.value) and "column_map" not in str(of_sft.value)


def test_a_chat_that_ends_with_the_user_is_a_prompt(tmp_path, make_trainer):
    (tmp_path / "rows.jsonl").write_bytes(lines([{"messages": CHAT, "solution": "w5"}]))
    assert list(prompt_rows(DatasetSpec(path=str(tmp_path / "rows.jsonl")))) == [{"prompt": CHAT, "solution": "w5"}]
    rows = [{"messages": CHAT, "solution": str(number)} for number in range(8)]
    for given in (rows, Dataset.from_list(rows), pd.DataFrame(rows)):
        trainer = make_trainer(rows=given, max_steps=1)
        asked = trainer.train_dataset[0]["prompt"]
        assert asked == CHAT and trainer.train_dataset[3]["solution"] == "3"
        canvas = trainer.policy.encode([{"prompt": asked}], "text", max_completion_length=1)
    assert {1, 2, 9} <= set(canvas.ids[0].tolist())
    trainer.train()
    with pytest.raises(ValueError, match=r"train_dataset\[0\]: the chat ends with the assistant"):
        make_trainer(rows=[{"messages": [*CHAT, ANSWER]}] * 8)


# ---- what a script gives ----


@pytest.mark.parametrize("argument", ["rows", "eval_rows"])
def test_both_trainers_take_what_a_script_has(tmp_path, make_trainer, argument):
    (tmp_path / "rows.csv").write_bytes(table([*ROWS, *ROWS, *ROWS]))
    whole = [*ROWS, *ROWS, *ROWS]
    forms = [
        pd.DataFrame(whole),
        str(tmp_path / "rows.csv"),
        tmp_path / "rows.csv",
        DatasetDict(train=Dataset.from_list(whole)),
    ]
    splits = DatasetDict(train=Dataset.from_list(whole), test=Dataset.from_list(ROWS))
    for make in (make_trainer, lambda **given: given_trainer(tmp_path, **given)):
        for given in forms:
            trainer = make(**{argument: given})
            held = trainer.train_dataset if argument == "rows" else trainer.eval_dataset
            held = next(iter(held.values())) if isinstance(held, dict) else held
            assert [held[index]["prompt"] for index in range(9)] == [row["prompt"] for row in whole]
        with pytest.raises(ValueError, match=r"splits \['train', 'test'\]: give one, as in dataset\['train'\]"):
            make(**{argument: splits})
    sets = DatasetDict(validation=splits["test"], test=splits["test"])
    assert set(make_trainer(eval_rows=sets).eval_dataset) == {"validation", "test"}
    with pytest.raises(ValueError, match=r"mapping with the keys \['a'\]: give one dataset"):
        make_trainer(rows={"a": whole})
    with pytest.raises(ValueError, match=r"^train_dataset: dataset file .* does not exist"):
        make_trainer(rows=str(tmp_path / "no.csv"))


def test_what_a_table_lacks_is_none(tmp_path):
    table = pd.DataFrame([{"prompt": "a", "solution": 1.0}, {"prompt": "b"}])
    assert rows_of(table, "train_dataset") == [{"prompt": "a", "solution": 1.0}, {"prompt": "b", "solution": None}]


# ---- many rows ----


@pytest.mark.parametrize("cores", [1, 3])
def test_many_rows_are_checked_in_order_whoever_does_it(monkeypatch, cores):
    monkeypatch.setattr(checking, "MANY_ROWS", 10)
    monkeypatch.setattr(checking, "CHUNK", 4)
    monkeypatch.setattr(checking, "_processes", lambda useful: cores)
    rows, learned = [{"prompt": f"w{number}"} for number in range(60)], []
    check_dataset(rows, "train", lambda row, where: (row["prompt"], where), learned.append)
    assert learned == [(f"w{number}", f"train[{number}]") for number in range(60)]
    rows[37]["prompt"], rows[52]["prompt"] = "", None
    with pytest.raises(ValueError, match=r"^train\[37\]\['prompt'\] must be text"):
        check_dataset(rows, "train")

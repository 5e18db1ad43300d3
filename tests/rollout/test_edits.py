"""Rows that show a picture and want another one: what is read of them, what is refused, and the command line."""

from __future__ import annotations

import pytest
from PIL import Image

from unigrpo import UniGRPOConfig, load_policy
from unigrpo.data.image_codes import ImageCodec
from unigrpo.data.rows import check_dataset
from unigrpo.models import LuminaProcessor, MMaDAPolicy
from unigrpo.rollout.sample import check_prompt, prompt_images
from unigrpo.runs.cli import main
from unigrpo.runs.score_file import score_file

from ..support.images import picture, tiny_tokenizer
from ..support.recipes import recipe
from ..support.tiny import tiny_model, tiny_processor
from ..support.tiny_lumina import Cells, lumina_tokenizer, random_lumina, tiny_lumina


EDIT = {"prompt": "w2 w3", "task": "i2i", "image": picture(0)}


def args(tmp_path, **keys) -> UniGRPOConfig:
    return UniGRPOConfig(str(tmp_path / "run"), use_cpu=True, image_size=[32, 48], **keys)


def test_every_row_of_i2i_shows_a_picture_and_those_of_r2i_that_have_one(tmp_path):
    _, policy = tiny_lumina()
    codec = ImageCodec(Cells(), policy)
    plain = {"prompt": "w1", "task": "r2i", "image": None}
    coded, shown = prompt_images(policy, args(tmp_path), codec, [plain, {**EDIT, "task": "r2i"}, plain], "r2i")
    assert [own and own[0].tobytes() for own in shown] == [None, picture(0).tobytes(), None]
    assert coded[0] is plain and coded[2] is plain and coded[1]["image_grid"] == (2, 3)
    (own,), _ = prompt_images(policy, args(tmp_path), codec, [EDIT], "i2i")
    assert own["image_codes"].tolist() == coded[1]["image_codes"].tolist()
    with pytest.raises(ValueError, match=r"rows\[0\] is a row to edit without an image; .* or task='t2i'"):
        check_dataset([{**EDIT, "image": None}], "rows")


def test_what_a_family_has_no_layout_for_is_refused_before_a_run(tmp_path):
    mmada = MMaDAPolicy.from_model(tiny_model(), tiny_processor())
    codec = ImageCodec(tiny_tokenizer(), mmada)
    for task in ("i2i", "r2i"):
        with pytest.raises(ValueError, match=r"rows\[3\].*MMaDA was published without a layout for edits"):
            check_prompt(mmada, args(tmp_path), codec, {**EDIT, "task": task}, "rows[3]")
    _, lumina = tiny_lumina()
    codec, guided = ImageCodec(Cells(), lumina), args(tmp_path, image_guidance_scale=2.0)
    check_prompt(lumina, guided, codec, EDIT, "rows[3]")
    caption = {"prompt": "w2", "task": "t2i"}
    check_prompt(lumina, args(tmp_path), codec, caption, "rows[3]")
    with pytest.raises(ValueError, match=r"rows\[3\].*no row of task 't2i' without the prompt's picture"):
        check_prompt(lumina, guided, codec, caption, "rows[3]")


def test_pictures_that_no_prompt_would_show_are_refused():
    model, _ = tiny_lumina()
    policy = load_policy(model, processing_class=lumina_tokenizer(), image_tokenizer=Cells())
    with pytest.raises(ValueError, match="images belong to tasks 'mmu', 'i2i' and 'r2i', not to 't2i'"):
        policy.generate("w1", task="t2i", images=picture(0))
    with pytest.raises(ValueError, match="task 'i2i' reads a picture: give images"):
        policy.generate("w1", task="i2i")
    with pytest.raises(ValueError, match="give the row task 'i2i', without a thought, or open MMaDA-Parallel-A"):
        policy.generate("w1", task="r2i", images=picture(0))


def test_sample_edits_a_file(tmp_path, capsys):
    model, processor = random_lumina()
    assert isinstance(processor, LuminaProcessor)
    for own, name in ((model, "model"), (processor, "model"), (tiny_tokenizer(), "codes")):
        own.save_pretrained(tmp_path / name)
    picture(0).save(tmp_path / "in.png")
    argv = ["sample", str(tmp_path / "model"), "w2 w3", "--task", "i2i", "--image", str(tmp_path / "in.png")]
    argv += ["--image-size", "32", "--image-tokenizer", str(tmp_path / "codes"), "--steps", "2"]
    assert main([*argv, "--image-guidance-scale", "2", "--output", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "0000.png").size == (32, 32)
    assert main([*argv[:5], *argv[7:], "--output", str(tmp_path / "none")]) == 2
    assert "image" in capsys.readouterr().err


def test_a_file_of_edits_is_scored_with_both_pictures(tmp_path):
    Image.new("RGB", (8, 8), (51, 51, 51)).save(tmp_path / "in.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "out.png")
    line = f'{{"prompt": "darker", "task": "i2i", "image": "{tmp_path}/in.png", "completion": "{tmp_path}/out.png"}}'
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    own = recipe(tmp_path, RECIPE)
    assert "0.8" in "\n".join(score_file(own, str(tmp_path / "rows.jsonl")))


RECIPE = """
model: {path: somewhere}
datasets: [{path: "builtin:arithmetic", limit: 4}]
rewards: [{name: pixel_similarity, weight: 1.0}]
output_dir: out
use_cpu: true
"""

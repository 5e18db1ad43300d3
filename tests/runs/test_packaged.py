"""Recipes by name: found from anywhere, copied without loss, and never mistaken for a file of the user's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from unigrpo.errors import RecipeError
from unigrpo.runs import packaged
from unigrpo.runs.bounded_yaml import read_yaml
from unigrpo.runs.cli import main
from unigrpo.runs.kinds import kind_of
from unigrpo.runs.recipe import load_recipe
from unigrpo.runs.sft import load_any_recipe

from ..support import RECIPES


OWN = """
model: {path: somewhere}
datasets: [{path: rows.jsonl}]
rewards: [{name: think_format}]
"""


def test_every_recipe_and_launch_file_is_listed_with_a_line(capsys):
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    files = [file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.rglob("*.yaml")]
    assert sorted([*packaged.names(), *packaged.launch_files()]) == sorted(files)
    for name in files:
        line = packaged.line(name)
        assert (10 < len(line) <= 110 and line.endswith(".")) or name == "accelerate/one_gpu", name
        assert f"{name} " in shown and line in shown


def test_the_list_needs_no_torch_and_says_what_the_keys_say(tmp_path):
    """Copies and the list are there at once: a recipe's first line says its command."""
    code = f"""import sys
from unigrpo.runs.cli import main
main(["recipes"]), main(["recipes", "copy", "quickstart", "--to", {str(tmp_path)!r}])
sys.exit(", ".join({{"torch", "transformers", "datasets"}} & set(sys.modules)) or 0)"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for name in packaged.names():
        assert packaged.command(name) == load_any_recipe(name).kind, name


def test_recipes_are_listed_and_copied_with_their_command(tmp_path, capsys):
    assert main(["recipes"]) == 0
    train, _, sft = capsys.readouterr().out.partition("recipes for `unigrpo sft`:")
    for name, place in (("quickstart", train), ("sft_mixed_cot_mmada_8b", sft)):
        assert f"  {name} " in place and f"  {name} " not in (train + sft).replace(place, "")
    for name, use in (
        ("sft_mixed_cot_mmada_8b", "unigrpo sft {}"),
        ("quickstart", "unigrpo train {}"),
        ("ddp_8", "accelerate launch --config_file {} -m unigrpo train RECIPE"),
    ):
        assert main(["recipes", "copy", name, "--to", str(tmp_path)]) == 0
        assert capsys.readouterr().out.endswith(f"to use it: {use.format(tmp_path / f'{name}.yaml')}\n")


def test_the_first_line_of_a_recipe_is_its_command_and_the_list_needs_no_torch():
    for name in packaged.names():
        text = (RECIPES / f"{name}.yaml").read_text()
        assert packaged.command(name) == kind_of(read_yaml(text)), name
    listed = "import sys; from unigrpo.runs.cli import main; main(['recipes']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", listed], capture_output=True, check=False).returncode == 0


@pytest.mark.smoke
def test_a_name_means_the_shipped_recipe_and_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart").source == "quickstart"
    with pytest.raises(RecipeError, match=r"'quickstart.yaml' is not a file: did you mean 'quickstart', which ships"):
        load_recipe("quickstart.yaml")
    (tmp_path / "quickstart.yaml").write_text(OWN)
    for path in ("quickstart", "quickstart.yaml", tmp_path / "quickstart.yaml"):
        assert load_recipe(path).model.path == "somewhere" and load_recipe(path).source.endswith("quickstart.yaml")
    with pytest.raises(RecipeError, match="'accelerate/ddp_8' is a launch file"):
        load_recipe("accelerate/ddp_8")


def test_paths_of_the_file_are_beside_it_and_those_of_the_command_line_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "own.yaml").write_text(OWN)
    for folder in (tmp_path, tmp_path / "project"):
        (folder / "rows.jsonl").write_text("")
    assert load_recipe("project/own.yaml").datasets[0].path == "project/rows.jsonl"
    assert load_recipe("project/own", ["datasets.0.path=rows.jsonl"]).datasets[0].path == "rows.jsonl"
    assert load_recipe("project/own").model.path == "somewhere"
    shipped = load_recipe("mixed_mmada_8b").datasets[-1].path
    assert shipped.endswith("recipes/prompts/t2i_train.txt") and shipped != "prompts/t2i_train.txt"


def test_copies_bring_their_files_and_overwrite_nothing(tmp_path, capsys):
    written = packaged.copy("mixed_mmada_8b", tmp_path)
    assert {file.name for file in written} == {"mixed_mmada_8b.yaml", "t2i_train.txt", "t2i_heldout.txt"}
    assert all(file.read_bytes() == (RECIPES / file.relative_to(tmp_path)).read_bytes() for file in written)
    # The same again is no loss, and prompts may be shared.
    packaged.copy("image_mmada_8b_lora", tmp_path)
    assert packaged.copy("ddp_8", tmp_path) == [tmp_path / "ddp_8.yaml"]
    (tmp_path / "mixed_mmada_8b.yaml").write_text("mine")
    with pytest.raises(RecipeError, match=r"mixed_mmada_8b.yaml"):
        packaged.copy("mixed_mmada_8b", tmp_path)
    assert (tmp_path / "mixed_mmada_8b.yaml").read_text() == "mine"
    with pytest.raises(RecipeError, match=r"cannot be copied into .*; give another folder"):
        packaged.copy("quickstart", tmp_path / "mixed_mmada_8b.yaml")
    assert main(["recipes", "copy", "quickstart_mixed", "bogus", "--to", str(tmp_path)]) == 2
    assert not (tmp_path / "quickstart_mixed.yaml").exists()
    assert "recipe 'bogus' is not shipped" in capsys.readouterr().err

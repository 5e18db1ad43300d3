"""The contact sheet: whose pixels are where, and labels that stay in their place."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unigrpo.training.contact_sheet import GAP, LABEL_WIDTH, MARGIN, Drawn, contact_sheet, grouped_sheet


def plain(colour, size=(32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def cell_at(sheet: Image.Image, row: int, column: int, *, labelled: bool = True, cell: int = 96) -> np.ndarray:
    """Pixels of a cell of a sheet without title and column labels."""
    left = MARGIN + (LABEL_WIDTH if labelled else 0) + column * (cell + GAP)
    top = MARGIN + row * (cell + GAP)
    return np.asarray(sheet.crop((left, top, left + cell, top + cell)))


@pytest.mark.smoke
def test_every_picture_is_in_its_cell():
    colours = [["red", "lime"], ["blue", "yellow"], ["black", "white"]]
    sheet = contact_sheet([[plain(c) for c in row] for row in colours], row_labels=["a", "b", "c"])
    assert sheet.mode == "RGB"
    assert sheet.size == (2 * MARGIN + LABEL_WIDTH + 2 * 96 + GAP, 2 * MARGIN + 3 * 96 + 2 * GAP)
    for row, names in enumerate(colours):
        for column, name in enumerate(names):
            assert (cell_at(sheet, row, column) == np.asarray(plain(name, (96, 96)))).all()


def test_small_pictures_are_enlarged_without_blurring():
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sheet = contact_sheet([[Image.fromarray(values)]], row_labels=["x"])
    assert (cell_at(sheet, 0, 0) == values.repeat(3, axis=0).repeat(3, axis=1)).all()


def test_large_and_oblong_pictures_keep_their_aspect_on_paper():
    sheet = contact_sheet([[plain("red", (400, 200))]], row_labels=["x"])
    cell = cell_at(sheet, 0, 0)
    assert (cell[25:71] == (255, 0, 0)).all()
    assert (cell[:23] == 255).all() and (cell[73:] == 255).all()


@pytest.mark.parametrize("label", ["a", "many words " * 40, "W" * 300, "ü 漢字 \n\t tab"])
def test_labels_are_written_and_stay_out_of_the_pictures(label):
    pictures = [[plain("red")] * 3] * 2
    bare = contact_sheet(pictures, row_labels=["x", "x"])
    sheet = contact_sheet(pictures, row_labels=[label, label])
    written = np.asarray(sheet)
    assert sheet.size == bare.size
    left = MARGIN + LABEL_WIDTH
    assert (written[:, left - 2 :] == np.asarray(bare)[:, left - 2 :]).all()
    assert (written[:, MARGIN : left - GAP] < 128).any()
    assert (written[:, :MARGIN] == 255).all()


def test_title_and_column_labels_make_room_above():
    pictures = [[plain("red"), plain("red")]]
    bare = contact_sheet(pictures, row_labels=["x"])
    labelled = contact_sheet(pictures, row_labels=["x"], column_labels=["before", "after"], title="T")
    extra = labelled.height - bare.height
    assert labelled.width == bare.width and extra > 20
    below = np.asarray(labelled)[extra + MARGIN :]
    assert (below == np.asarray(bare)[MARGIN:]).all()
    assert (np.asarray(labelled)[: extra + MARGIN - 2] < 160).any()


def test_wrong_shapes_are_refused():
    for rows, labels in (([], []), ([[]], ["a"])):
        with pytest.raises(ValueError, match="no picture"):
            contact_sheet(rows, row_labels=labels)
    with pytest.raises(ValueError, match="row_labels: 2 for 1"):
        contact_sheet([[plain("red")]], row_labels=["a", "b"])
    with pytest.raises(ValueError, match="column_labels: 1 for 2"):
        contact_sheet([[plain("red")] * 2], row_labels=["a"], column_labels=["x"])
    with pytest.raises(ValueError, match="cell=8"):
        contact_sheet([[plain("red")]], row_labels=["a"], cell=8)


def test_captions_stand_under_their_pictures_and_make_room():
    pictures = [[plain("red"), plain("blue")], [plain("lime")]]
    bare = contact_sheet(pictures, row_labels=["", ""], cell=64)
    told = contact_sheet(
        pictures, row_labels=["", ""], cell=64, captions=[["one", ""], ["a thought of many words " * 9]]
    )
    assert told.width == bare.width and told.height > bare.height
    under = np.asarray(told)[16 + 64 + 2 : 16 + 64 + 40, 16 : 16 + 64]
    beside = np.asarray(told)[16 + 64 + 2 : 16 + 64 + 40, 16 + 64 + 8 : 16 + 64 + 8 + 64]
    assert (under < 200).any() and not (beside < 200).any()
    with pytest.raises(ValueError, match="captions: give one a picture"):
        contact_sheet(pictures, row_labels=["", ""], captions=[["one"], ["two"]])


def test_an_edit_stands_behind_what_it_was_made_of():
    drawn = [Drawn("make it blue", plain("blue"), shown=plain(own)) for own in ("red", "red", "green")]
    sheet = grouped_sheet(drawn, rows=2, columns=2)
    assert (
        sheet.size == contact_sheet([[plain("red")] * 3] * 2, row_labels=["x", "x"], captions=[["shown"] * 3] * 2).size
    )
    areas = {colour: count for count, colour in sheet.getcolors(1 << 16)}
    # Two edits of the red picture and one of the green one, each line behind what it was made of.
    cell = areas[(255, 0, 0)]
    assert areas[(0, 128, 0)] == cell and areas[(0, 0, 255)] == 3 * cell
    assert (cell_at(sheet, 0, 0)[0, 0] == (255, 0, 0)).all()

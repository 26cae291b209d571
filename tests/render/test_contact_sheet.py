"""Contact sheets: where pictures and titles stand, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pixels import RED, WHITE, assert_same, noise, plain

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.render import contact_sheet


def test_sheet_places_pictures_in_cells_of_their_own_proportions():
    sheet = contact_sheet([[plain(RED, 10, 20), plain((0, 0, 255), 40, 20)]], cell_size=20, margin=4)
    assert sheet.shape == (4 + 20 + 4, 4 + 2 * 24, 3)
    expected = np.full_like(sheet, 255)
    expected[9:19, 4:24] = RED  # centered in a row that is as high as its highest picture
    expected[4:24, 33:43] = (0, 0, 255)
    assert_same(sheet, expected)


def test_sheet_row_is_no_higher_than_its_pictures():
    assert contact_sheet([plain(RED, 10, 20)], cell_size=20, margin=3).shape == (16, 26, 3)


def test_sheet_fills_columns_and_leaves_cells_empty():
    blue = plain((0, 0, 255), 8, 8)
    sheet = contact_sheet([plain(RED, 8, 8), None, blue], columns=2, cell_size=8, margin=1)
    assert sheet.shape == (19, 19, 3)
    assert_same(sheet[1:9, 1:9], plain(RED, 8, 8))
    assert_same(sheet[10:18, 1:9], blue)
    assert (sheet[:, 10:] == 255).all()


def test_sheet_row_of_nothing_is_a_square_cell_high():
    assert contact_sheet([[None], [plain(RED, 5, 10)]], cell_size=10, margin=1).shape == (1 + 11 + 6, 12, 3)


def test_sheet_takes_batches_as_rows_and_flat_batches():
    batch = noise(3, 8, 8, 3)
    options = {"cell_size": 8, "margin": 1}
    nested = contact_sheet([list(batch)], **options)
    assert_same(contact_sheet(batch, **options), nested)
    assert_same(contact_sheet([batch], **options), nested)
    assert_same(contact_sheet([torch.from_numpy(batch).permute(0, 3, 1, 2)], **options), nested)
    assert_same(nested[1:9, 10:18], batch[1])


def ink(region: np.ndarray) -> np.ndarray:
    """Rows and columns that hold something else than white."""
    return np.argwhere((region < 250).any(axis=2))


def test_sheet_titles_stand_in_their_bands_and_are_not_clipped():
    picture, margin, size = plain(WHITE, 60, 120), 8, 120
    grid = {"cell_size": size, "margin": margin, "font_size": 14}
    bare = contact_sheet([[picture, picture]], **grid)
    assert ink(bare).size == 0
    titled = contact_sheet([[picture, picture]], titles=[["(gjpqy", "ÅÉ|"]], **grid)
    band = titled.shape[0] - bare.shape[0]
    written = ink(titled)
    assert 14 < band < 28
    assert written[:, 0].min() > margin  # above and below the letters stays white
    assert written[:, 0].max() < margin + band
    assert abs((written[:, 0].min() + written[:, 0].max()) / 2 - margin - band / 2) <= 2
    for start in (margin, 2 * margin + size):
        columns = written[(written[:, 1] >= start) & (written[:, 1] < start + size), 1]
        assert abs((columns.min() + columns.max()) / 2 - start - size / 2) <= 1.5  # centered


def test_sheet_long_titles_are_shortened_within_their_cells():
    pictures, grid = [plain(WHITE, 30, 90)] * 2, {"cell_size": 90, "margin": 10}
    sheet = contact_sheet([pictures], titles=[["", "W" * 10_000]], row_titles=["m" * 10_000], **grid)
    columns = set(ink(sheet)[:, 1])
    start = sheet.shape[1] - 100
    title = {column for column in columns if column >= start}
    assert 60 < max(title) - min(title) <= 90
    assert max(title) < start + 90
    row_title = columns - title
    assert min(row_title) >= 10
    assert max(row_title) < start - 100  # not below the first picture
    dots = contact_sheet([pictures], titles=[["", "W" * 30 + "m"]], row_titles=["m" * 10_000], **grid)
    assert_same(dots, sheet)


def test_sheet_column_and_row_titles_take_room_outside_of_the_cells():
    picture = plain(RED, 30, 30)
    bare = contact_sheet([[picture]], cell_size=30, margin=5)
    sheet = contact_sheet([[picture]], column_titles=["a"], row_titles=["b"], cell_size=30, margin=5)
    height, width = bare.shape[:2]
    assert_same(sheet[-30 - 5 : -5, -30 - 5 : -5], picture)
    assert sheet.shape[0] > height
    assert sheet.shape[1] > width
    title = ink(sheet[: sheet.shape[0] - height])
    assert abs((title[:, 1].min() + title[:, 1].max()) / 2 - (sheet.shape[1] - 5 - 15)) <= 1.5  # above its column
    assert ink(sheet[-height:, : sheet.shape[1] - width]).size


@pytest.mark.parametrize(
    ("text", "same"),
    [("Café", "Cafe"), ("日本", "??"), ("10²", "10?"), ("a → b", "a -> b"), ("two\nlines", "two lines")],
)
def test_sheet_titles_replace_what_the_font_lacks(text, same):
    sheets = [contact_sheet([plain(WHITE)], titles=[title], cell_size=100) for title in (text, same)]
    assert_same(*sheets)
    assert ink(sheets[0]).size


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"titles": ["one"]}, ShapeError, "1 titles; expected 3"),
        ({"titles": ["a", "b", "c"], "column_titles": []}, ShapeError, "0 column_titles; expected 3"),
        ({"row_titles": ["a", "b"]}, ShapeError, "2 row_titles; expected 1"),
        ({"cell_size": 0}, OptionError, "cell_size=0"),
        ({"columns": 0}, OptionError, "columns=0"),
        ({"margin": -1}, OptionError, "margin=-1"),
    ],
)
def test_sheet_errors(options, error, message):
    with pytest.raises(error, match=message):
        contact_sheet([plain(RED)] * 3, **options)


def test_sheet_errors_of_rows():
    with pytest.raises(ShapeError, match="no pictures"):
        contact_sheet([])
    with pytest.raises(OptionError, match="columns=2 for nested pictures"):
        contact_sheet([[plain(RED)]], columns=2)
    with pytest.raises(ShapeError, match="1 titles in row 1; expected 2"):
        contact_sheet([[plain(RED)], [plain(RED)] * 2], titles=[["a"], ["b"]])

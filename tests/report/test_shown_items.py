"""How items of many kinds are shown."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffin.report.samples import LARGEST_SIDE, MOST_NUMBERS, show_item


def _pixels(item: Any, show: Any = None) -> Any:
    shown = show_item(item, show)
    assert shown.kind == "picture"
    head, _, content = shown.picture.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (5, 7, 1), (3, 5, 7), (5, 7, 3)])
@pytest.mark.parametrize("make", [torch.zeros, np.zeros], ids=["tensor", "array"])
def test_arrays_of_the_shape_of_a_picture_are_pictures(shape: tuple[int, ...], make: Any) -> None:
    expected = (5, 7, 3) if 3 in shape else (5, 7)
    assert _pixels((make(shape), 0)).shape == expected


def test_channels_first_and_last_show_the_same() -> None:
    picture = torch.rand(3, 5, 7)
    np.testing.assert_array_equal(_pixels(picture), _pixels(picture.permute(1, 2, 0)))


def test_values_in_the_unit_interval_are_taken_as_they_are() -> None:
    np.testing.assert_array_equal(_pixels(np.array([[0.0, 0.2], [0.4, 0.6]])), [[0, 51], [102, 153]])


def test_other_values_are_stretched_to_the_full_range() -> None:
    np.testing.assert_array_equal(_pixels(np.array([[-1.0, 0.0], [0.5, 1.0]])), [[0, 128], [191, 255]])
    np.testing.assert_array_equal(_pixels(np.array([[0, 16], [8, 0]])), [[0, 255], [128, 0]])
    np.testing.assert_array_equal(_pixels(np.full((2, 2), 7.0)), np.zeros((2, 2)))


def test_bytes_are_taken_as_they_are() -> None:
    picture = np.array([[3, 4], [5, 6]], dtype=np.uint8)
    np.testing.assert_array_equal(_pixels(picture), picture)


def test_holes_in_a_picture_do_not_stop_it() -> None:
    assert _pixels(np.array([[np.nan, 1.0], [np.inf, 0.0]])).shape == (2, 2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.int64])
def test_every_kind_of_number_can_be_a_picture(dtype: torch.dtype) -> None:
    assert _pixels(torch.eye(4).to(dtype)).max() == 255


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "F", "CMYK"])
def test_pil_images_of_every_mode_are_pictures(mode: str) -> None:
    assert _pixels((Image.new(mode, (6, 4)), 1)).shape[:2] == (4, 6)


def test_large_pictures_are_shrunk_and_tiny_ones_stay_crisp() -> None:
    assert max(_pixels(torch.rand(3, 900, 600)).shape) == LARGEST_SIDE
    assert not show_item(torch.rand(3, 900, 600)).crisp
    assert show_item(torch.rand(8, 8)).crisp


def test_text_is_text() -> None:
    assert show_item(("good film", 1)).text == "good film"
    assert len(show_item("x" * 10_000).text) == 4000


@pytest.mark.parametrize("key", ["text", "sentence", "Review", "input"])
def test_a_text_column_is_found(key: str) -> None:
    shown = show_item({"id": 7, key: "good film", "label": 1})
    assert (shown.kind, shown.text) == ("text", "good film")


def test_an_image_column_is_found_and_captioned() -> None:
    shown = show_item({"image": Image.new("RGB", (4, 4)), "caption": "a cat"})
    assert (shown.kind, shown.text) == ("picture", "a cat")
    assert show_item({"pixel_values": torch.rand(3, 8, 8), "labels": 3}).kind == "picture"
    assert show_item({"x": torch.rand(8, 8), "y": 1}).kind == "picture"


def test_other_mappings_are_rows_without_their_target() -> None:
    shown = show_item({"age": 41, "income": -12345.678, "city": "Bern", "label": 1, "smokes": True})
    assert shown.kind == "row"
    assert dict(shown.row) == {"age": "41", "income": "\u22121.235e+04", "city": "Bern", "smokes": "True"}


def test_vectors_are_rows_and_say_how_much_is_left_out() -> None:
    assert show_item((torch.tensor([1.5, -2.0]), 0)).row == (("x0", "1.5"), ("x1", "\u22122"))
    row = show_item(np.arange(100)).row
    assert len(row) == MOST_NUMBERS + 1
    assert row[-1] == ("\u2026", "88 more")
    assert show_item([1, 2, 3]).kind == "row"


def test_what_is_not_known_is_shown_shortened() -> None:
    class Strange:
        def __repr__(self) -> str:
            return "<strange " + "x" * 1000 + ">"

    shown = show_item(Strange())
    assert shown.kind == "text"
    assert len(shown.text) < 200
    assert show_item(torch.rand(2, 4, 5, 6)).text == "tensor of shape (2, 4, 5, 6)"
    assert show_item({"frames": torch.rand(2, 4, 5, 6)}).row == (("frames", "tensor of shape (2, 4, 5, 6)"),)


def test_several_inputs_show_their_picture_or_words() -> None:
    assert show_item(((torch.rand(5), torch.rand(8, 8)), 0)).kind == "picture"
    assert show_item((["two", "words"], 0)).text == "two words"


@pytest.mark.parametrize(
    ("result", "kind"),
    [("a", "text"), ({"a": 1}, "row"), (np.zeros((4, 4)), "picture"), (Image.new("L", (3, 3)), "picture")],
)
def test_show_has_the_last_word(result: Any, kind: str) -> None:
    assert show_item((torch.rand(8, 8), 0), lambda item: result).kind == kind


def test_a_row_given_by_show_keeps_every_column() -> None:
    assert show_item(None, lambda item: {"text": "a", "label": 2}).row == (("text", "a"), ("label", "2"))
    assert show_item(None, lambda item: {"image": np.zeros((4, 4)), "caption": "a"}).text == "a"

"""Lists, tables, labels and names as other programs save them: encodings, byte order marks, blanks, letters."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gradcam_kit.errors import InputError
from gradcam_kit.jobs.sources.index import Entry, index_pictures
from gradcam_kit.jobs.sources.labels import Labels
from gradcam_kit.jobs.sources.masks import Masks
from gradcam_kit.jobs.sources.reading import depth_note
from gradcam_kit.jobs.work.loading import _lines

NFD = "Ka\u0308se"
NFC = unicodedata.normalize("NFC", NFD)
GRAY = np.full((8, 8), 200, np.uint8)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.fromarray(GRAY).save(name)


def found(source: str) -> list[tuple[str, str | None]]:
    return [(entry.key, entry.label) for entry in index_pictures(source, "out")]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp437"])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_a_table_in_another_encoding_is_named_with_the_one_to_use(name: str, encoding: str) -> None:
    separator = "\t" if name.endswith("tsv") else ","
    Path(name).write_bytes(f"path{separator}label\na.png{separator}caf\u00e9\n".encode(encoding))
    with pytest.raises(InputError, match=rf"'{name}' is not UTF-8 \(.*\); save it as UTF-8") as caught:
        found(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_a_list_in_another_encoding_is_named_too(encoding: str) -> None:
    Path("list.txt").write_bytes("a.png\ncaf\u00e9.png\n".encode(encoding))
    with pytest.raises(InputError, match="is not UTF-8"):
        found("list.txt")


def test_names_of_files_that_are_not_utf8_stay_names() -> None:
    place = Path(b"caf\xe9.png".decode(errors="surrogateescape"))
    try:
        Image.fromarray(GRAY).save("c.png")
        Path("c.png").rename(place)
    except OSError:
        pytest.skip("this file system takes no such names")
    Path("list.txt").write_bytes(b"a.png\ncaf\xe9.png\n")
    assert found("list.txt") == [("a.png", None), ("caf\\xe9.png", None)]


@pytest.mark.parametrize(
    "table",
    [
        "\ufeffpath,label\na.png,cat\nb.png,dog\n",
        " path , label \na.png, cat\nb.png,dog \n",
        '\ufeff"path","label"\r\na.png,"cat"\r\nb.png,dog\r\n',
        "\ufeff\ufeffpath,label\n a.png,cat\nb.png ,\u00a0dog\n",
        "label,\u00a0path\ncat,a.png\ndog,b.png\n",
    ],
)
def test_blanks_and_byte_order_marks_are_no_part_of_headers_and_values(table: str) -> None:
    Path("list.csv").write_text(table, encoding="utf-8", newline="")
    assert found("list.csv") == [("a.png", "cat"), ("b.png", "dog")]


def test_blanks_in_the_columns_of_parquet() -> None:
    pq.write_table(pa.table({"\ufeffpath ": ["a.png", "b.png"], " label": ["cat ", " "]}), "list.parquet")
    assert found("list.parquet") == [("a.png", "cat"), ("b.png", None)]


def test_a_blank_that_belongs_to_a_name_stays() -> None:
    Image.fromarray(GRAY).save(" c.png")
    Path("list.csv").write_text("path\n c.png\n")
    assert found("list.csv") == [(" c.png", None)]


@pytest.mark.parametrize(("on_disk", "listed"), [(NFC, NFD), (NFD, NFC), (NFC, NFC)])
def test_a_listed_path_is_found_whatever_its_letters_are_made_of(on_disk: str, listed: str) -> None:
    Image.fromarray(GRAY).save(f"{on_disk}.png")
    Path("list.csv").write_text(f"path\n{listed}.png\n", encoding="utf-8")
    [entry] = index_pictures("list.csv", "out")
    assert Path(entry.path).exists()


@pytest.mark.parametrize(("folder", "name"), [(NFC, NFD), (NFD, NFC), (f" {NFC}", f"{NFD} ")])
def test_labels_are_classes_whatever_their_letters_are_made_of(folder: str, name: str) -> None:
    labels = Labels(["cat", name])
    assert labels.index(Entry(f"{folder}/a.png", "")) == 1
    assert labels.index(Entry("a.png", "", folder)) == 1
    assert labels.require(Entry(f"{folder}/later/a.png", "")) == 1


def test_names_that_differ_by_their_letters_alone_are_two_of_one_name() -> None:
    assert Labels([NFC, NFD]).index(Entry("a.png", "", NFC)) is None


@pytest.mark.parametrize(("picture", "mask"), [(NFC, NFD), (NFD, NFC)])
def test_a_mask_is_found_whatever_its_letters_are_made_of(picture: str, mask: str) -> None:
    Path("masks").mkdir()
    Image.fromarray(GRAY).save(f"masks/{mask}.png")
    assert Masks("masks").has(f"{picture}.jpg")
    assert Masks("masks").of(f"{picture}.jpg", (8, 8), (0.0, 0.0, 8.0, 8.0), (8, 8)).all()


@pytest.mark.parametrize(
    "content",
    [b"cat\ndog\n", b"\xef\xbb\xbfcat\r\ndog\r\n\r\n", b" cat \ndog\t\n\n  \n", "cat\ndog\u00a0".encode()],
)
def test_a_file_of_class_names_is_read_without_what_is_around_them(content: bytes) -> None:
    Path("names.txt").write_bytes(content)
    assert _lines(Path("names.txt")) == ["cat", "dog"]


def test_a_class_without_a_name_keeps_its_place() -> None:
    Path("names.txt").write_text("cat\n\ndog\n")
    assert _lines(Path("names.txt")) == ["cat", "", "dog"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be", "cp1252"])
def test_class_names_in_another_encoding_are_named(encoding: str) -> None:
    Path("names.txt").write_bytes("cat\nK\u00e4se\n".encode(encoding))
    with pytest.raises(InputError, match=r"'names.txt' is not UTF-8 .*; save it as UTF-8"):
        _lines(Path("names.txt"))


def test_12_bits_in_16_are_said() -> None:
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save("dark.png")
    assert "as if it held unscaled 12-bit data" in str(depth_note(Entry("dark.png", "dark.png")))
    assert depth_note(Entry("a.png", "a.png")) is None
    assert depth_note(Entry("none.png", "none.png")) is None

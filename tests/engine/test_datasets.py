"""Where data come from: folders of images, tables, downloads; each mistake gets one sentence."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_project import datasets, images, tables
from ml_project.datasets import RawDataset
from ml_project.prepare import prepare
from PIL import Image
from runengine import UserError, compose
from runengine.data import download

SHARES: dict[str, Any] = {"split_seed": 0, "val_fraction": 0.25, "test_fraction": 0.25}
FILES = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
CONTENT = bytes(range(256)) * 2000


def sentence_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def stored(folder: str, split: str, kind: str) -> np.ndarray:
    array: np.ndarray = np.load(f"{folder}/{split}_{kind}.npy")
    return array


# --- images


def draw(*names: str, size: tuple[int, int] = (6, 4)) -> None:
    """An image file for each name; the first letter of its folder gives the colour."""
    for name in names:
        file = Path("pets") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (ord(file.parent.name[0]), 100, 200)).save(file)


def pets(num_images: int = 4, where: str = "") -> list[str]:
    return [f"{where}{name}/{number}.png" for name in ("cat", "dog") for number in range(num_images)]


def prepare_pets(grey: bool = False) -> dict[str, Any]:
    return prepare(Path("data/pets"), partial(images.from_folder, "pets", [4, 6], grey), **SHARES)


def test_a_large_folder_of_images_becomes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(*pets())
    small = prepare_pets()
    monkeypatch.setattr(images, "LARGE_BYTES", 100)
    assert prepare_pets() == small  # with the SHA-256 of each file


def test_a_folder_of_images_becomes_bytes_with_the_names_of_the_classes() -> None:
    draw(*pets())
    Path("pets/cat/.DS_Store").touch()
    Path("pets/dog/Thumbs.db").touch()
    record = prepare_pets()
    assert record["rows"] == {"train": 4, "val": 2, "test": 2}
    assert record["classes"] == ["cat", "dog"]
    assert record["input_shape"] == [3, 4, 6]
    pixels, labels = stored("data/pets", "train", "images"), stored("data/pets", "train", "labels")
    assert pixels.dtype == np.uint8
    assert [ord(record["classes"][label][0]) for label in labels] == pixels[:, 0, 0, 0].tolist()
    assert prepare_pets(grey=True)["input_shape"] == [1, 4, 6]


def test_splits_that_the_images_have_are_kept() -> None:
    draw(*pets(2, "train/"), *pets(1, "val/"), "test/cat/5.png")
    record = prepare_pets()
    assert record["rows"] == {"train": 4, "val": 2, "test": 1}
    assert stored("data/pets", "test", "rows").tolist() == [6]


def test_an_image_of_16_bits_keeps_its_greys_and_a_photo_is_turned_upright() -> None:
    Image.fromarray(np.array([[0, 128 << 8], [255 << 8, 0]], dtype=np.uint16)).save("deep.png")
    assert images.read_image(Path("deep.png"), (1, 2, 2)).tolist() == [[[0, 128], [255, 0]]]
    photo, exif = Image.new("L", (2, 4)), Image.Exif()
    exif[0x0112] = 6  # orientation: lies on its side
    photo.putpixel((0, 0), 255)
    photo.save("photo.png", exif=exif)
    assert images.read_image(Path("photo.png"), (1, 2, 4))[0, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize(("files", "sentence"), [
    ([], "pets is not a folder. Put a folder of images for each class there, or set dataset.folder."),
    (["README"], "pets holds no folders. Put the images of each class into one: pets/cat/1.png."),
    (["train/README"], "pets/train holds no folders. Put the images of each class into one: pets/train/cat/1.png."),
    ([*pets(), "eel/.hidden"], "pets/eel holds no images. Put the images of this class there, or delete the folder."),
    ([*pets(), "dog/notes", "dog/more"],
     "pets/dog/more, and 1 more cannot be read as an image. Fix or delete what is no image."),
    (["cat/1.png", "cat/2.png"], "all 2 examples are of the class 'cat': at least two classes are needed."),
    ([*pets(), "eel/1.png"], "too few examples of 'eel' (1): each class needs 3, one for train, test, val each. "
     "Add some, or leave these classes out."),
    ([*pets(2, "train/"), "test/eel/1.png"],
     "pets/test/eel is a class that train lacks. Its classes: cat, dog."),
    ([*pets(2, "train/"), "extra/eel/1.png"],
     "pets holds train and extra: next to train only val and test may be."),
])  # fmt: skip
def test_a_mistake_in_a_folder_of_images_gets_one_sentence(files: list[str], sentence: str) -> None:
    draw(*(name for name in files if name.endswith(".png")))
    for name in files:
        file = Path("pets") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text("no image")
    assert sentence_of(prepare_pets) == sentence
    assert not Path("data/pets").exists()


def test_a_size_of_images_is_two_numbers() -> None:
    sentence = "dataset.size must be height and width, such as [64,64], got [64]."
    assert sentence_of(lambda: images.from_folder("pets", [64], False)) == sentence


# --- tables

FLOWERS = "id,width,length,species\n" + "".join(
    f"{row},{row / 2},7,{'rose' if row % 2 else 'lily'}\n" for row in range(16)
)


def prepare_flowers(text: str | bytes, *, label: str = "species", ignore: tuple[str, ...] = ("id",)) -> dict[str, Any]:
    Path("flowers.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return prepare(Path("data/flowers"), partial(tables.from_csv, "flowers.csv", label, ignore), **SHARES)


def test_a_table_is_standardised_with_its_training_rows() -> None:
    record = prepare_flowers(FLOWERS)
    assert record["classes"] == ["lily", "rose"]
    assert record["features"] == ["width", "length"]
    assert record["input_shape"] == [2]
    values, rows, labels = (stored("data/flowers", "train", kind) for kind in ("images", "rows", "labels"))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[:, 0], (rows / 2 - (rows / 2).mean()) / (rows / 2).std(), rtol=1e-6)
    np.testing.assert_array_equal(values[:, 1], 0)  # a column that never changes
    np.testing.assert_array_equal(labels, rows % 2)
    assert record["mean"] == [(rows / 2).mean(), 7]
    assert json.loads(Path("data/flowers/split.json").read_text()) == record


def test_a_column_that_never_changes_is_0_also_where_its_mean_is_rounded() -> None:
    record = prepare_flowers(FLOWERS.replace(",7,", ",0.1,"))
    assert record["std"][1] == 1
    for split in ("train", "val", "test"):
        np.testing.assert_allclose(stored("data/flowers", split, "images")[:, 1], 0, atol=1e-12)


def test_new_rows_are_standardised_as_those_of_the_training_whatever_their_order() -> None:
    record = prepare_flowers(FLOWERS)
    Path("new.csv").write_text(f"length;note;width\n8;x;{record['mean'][0]}\n")
    np.testing.assert_array_equal(tables.read_table(Path("new.csv"), record), [[0, 1]])
    Path("new.csv").write_text("note\nx\n")
    sentence = "new.csv lacks what the model was trained on: width, length."
    assert sentence_of(lambda: tables.read_table(Path("new.csv"), record)) == sentence
    sentence = "new.csv is a table, but the model was not trained on one. Give --model=runs/... that was."
    assert sentence_of(lambda: tables.read_table(Path("new.csv"), {})) == sentence


def test_semicolons_and_the_mark_of_excel_are_understood_and_numbers_as_classes_sorted() -> None:
    text = "x;y\r\n" + "".join(f"{row};{(9, 10, 100)[row % 3]}\r\n" for row in range(12))
    assert prepare_flowers(text.encode("utf-8-sig"), label="y", ignore=())["classes"] == ["9", "10", "100"]


@pytest.mark.parametrize(("old", "new", "sentence"), [
    ("species", "Species", "flowers.csv has no column 'species': its columns are id, width, length, Species. "
     "Did you mean Species?"),
    ("id,", "number,", "flowers.csv has no column 'id': its columns are number, width, length, species. "
     "Set dataset.ignore."),
    ("\n3,1.5,", "\n3,,", "flowers.csv, row 5, column 'width': the value is missing. "
     "Fill in what is missing, or delete these rows or columns."),
    (",7,rose", ",NaN,rose", "flowers.csv, row 3, column 'length': the value is missing, and 7 more. "
     "Fill in what is missing, or delete these rows or columns."),
    ("1.5,7,rose", "1.5,7,", "flowers.csv, row 5, column 'species': the value is missing. "
     "Fill in what is missing, or delete these rows or columns."),
    ("\n3,1.5,", "\n3,wide,", "flowers.csv, row 5, column 'width': 'wide' is no number. "
     "Write numbers such as 0.5, or leave the column out: dataset.ignore=[width]"),
    ("width,length", "width,width", "flowers.csv has more than one column width. Give each a name of its own."),
    ("id,width", ",width", "flowers.csv: column 1 has no name. Name it, or delete it (pandas: to_csv(index=False))."),
    ("\n3,1.5,", "\n3,1,5,", "flowers.csv, row 5: 5 values for 4 columns. Fix this row."),
    ("lily", "rose", "all 16 examples are of the class 'rose': at least two classes are needed."),
    ("1.5,7,rose", "1.5,7,tulip", "too few examples of 'tulip' (1): each class needs 3, one for train, test, val each. "
     "Add some, or leave these classes out."),
    (FLOWERS, "id,width,species\n", "flowers.csv holds no rows: it needs a line of names, then one line an example."),
    (FLOWERS, "", "flowers.csv holds no rows: it needs a line of names, then one line an example."),
    (FLOWERS, "id,species\n1,a\n", "flowers.csv has no column other than species, id: nothing to learn from."),
    (FLOWERS, 'id,x,species\n1,"2"3,a\n',
     "flowers.csv is no table of values separated by ',': ',' expected after '\"'."),
    (FLOWERS, b"PK\xff\xfe", "flowers.csv is no text in UTF-8. From Excel, save it as `CSV UTF-8`."),
])  # fmt: skip
def test_a_mistake_in_a_table_gets_one_sentence(old: str, new: str | bytes, sentence: str) -> None:
    text = FLOWERS.replace(old, new) if isinstance(new, str) else new
    assert sentence_of(lambda: prepare_flowers(text)) == sentence
    assert not Path("data/flowers").exists()


@pytest.mark.parametrize(("text", "values", "labels"), [
    ("\ufeffw,y\n1,a\n2,b\n", [1, 2], ["a", "b"]),
    ('\n\n"w";"y"\r\n\r\n 1 ; a b \r\n"2";b\r\n\r\n', [1, 2], ["a b", "b"]),
    ('w\ty\n1\t"a\nx"\n2\t"b\t""c"""', [1, 2], ["a\nx", 'b\t"c"']),
    ("w,y\r1,\u00e4\r2,\u2028\u00fc'\\#\r", [1, 2], ["\u00e4", "\u00fc'\\#"]),
    ("w,y\n8.533745500555105e-05,a\n0.1000000000000000055511151231257827021181583404541015625,b\n",
     [8.533745500555105e-05, 0.1], ["a", "b"]),
    ("w,y\n-.5E3,a\n123456789012345678901234567890,b\n", [-500, 1.2345678901234568e29], ["a", "b"]),
    ("w,y\n1,10\n2,-9\n", [1, 2], [10, -9]),
    ("w,y\n1,123456789012345678\n2,123456789012345679\n", [1, 2], [123456789012345678, 123456789012345679]),
    ("w,y\n1,007\n2,7\n", [1, 2], ["007", "7"]),
    ("w,y\n1,1e3\n2,1000\n", [1, 2], ["1e3", "1000"]),
    ("w,y\n1,1.0\n2,1\n", [1, 2], ["1.0", "1"]),
    ("w,y\n1,18446744073709551615\n2,18446744073709551616\n", [1, 2], ["18446744073709551615", "18446744073709551616"]),
    ("w,y\n1,True\n2,\\N\n", [1, 2], ["True", "\\N"]),
])  # fmt: skip
def test_every_value_of_a_table_counts_as_it_stands_there(
    text: str, values: list[float], labels: list[str] | list[int]
) -> None:
    Path("new.csv").write_bytes(text.encode())
    raw = tables.from_csv("new.csv", "y", [])
    assert raw.features == ["w"]
    assert raw.images.ravel().tolist() == values
    assert raw.labels.tolist() == labels


def test_columns_keep_their_names() -> None:
    Path("new.csv").write_text("w, w.1 ,Unnamed: 0,1,y\n1,2,3,4,a\n")
    assert tables.from_csv("new.csv", "y", ["w"]).features == ["w.1", "Unnamed: 0", "1"]


NO_NUMBER = "Write numbers such as 0.5, or leave the column out: dataset.ignore=[w]"
NO_NAME = "Name it, or delete it (pandas: to_csv(index=False))."
NO_ROWS = "new.csv holds no rows: it needs a line of names, then one line an example."


@pytest.mark.parametrize(("text", "sentence"), [
    ('w,y\n1,"a\n\nx"\nbad,b\n', f"new.csv, row 3, column 'w': 'bad' is no number. {NO_NUMBER}"),
    ("\n\nw,y\n\n1,a\n\nbad,b\ninf,c\n", f"new.csv, row 7, column 'w': 'bad' is no number, and 1 more. {NO_NUMBER}"),
    ("w;y\n0,5;a\n", f"new.csv, row 2, column 'w': '0,5' is no number. {NO_NUMBER}"),
    ("w,y\n1e101,a\n", f"new.csv, row 2, column 'w': '1e101' is too large. {NO_NUMBER}"),
    ("w,y\n1,a\n\n2\n", "new.csv, row 4: 1 values for 2 columns. Fix this row."),
    ("w,y\n1,a\n   \n", "new.csv, row 3: 1 values for 2 columns. Fix this row."),
    ("\nw,y\n1,a\n2,b,\n", "new.csv, row 4: 3 values for 2 columns. Fix this row."),
    ("w,y\n0,1,a\n1,2,b\n", "new.csv, row 2: 3 values for 2 columns. Fix this row."),
    ("w,y,\n1,a,\n", f"new.csv: column 3 has no name. {NO_NAME}"),
    ("w, w,y\n1,2,a\n", "new.csv has more than one column w. Give each a name of its own."),
    ('w,y\n1,"a\n2,b\n', "new.csv is no table of values separated by ',': unexpected end of data."),
    ("w,y\n1,a\n,\n", "new.csv, row 3, column 'y': the value is missing. "
     "Fill in what is missing, or delete these rows or columns."),
    ("w,y\n\n\n", NO_ROWS),
    ("\n\n", NO_ROWS),
])  # fmt: skip
def test_a_mistake_in_a_table_is_found_where_a_spreadsheet_shows_it(text: str, sentence: str) -> None:
    Path("new.csv").write_text(text)
    assert sentence_of(lambda: tables.from_csv("new.csv", "y", [])) == sentence


def test_numbers_to_be_predicted_are_taken_for_no_classes() -> None:
    Path("new.csv").write_text("w,y\n" + "".join(f"{row},{row / 7}\n" for row in range(100)))
    assert sentence_of(lambda: tables.from_csv("new.csv", "y", [])) == (
        "new.csv: the column 'y' has 100 different numbers in 100 rows: they are no classes, but numbers to be "
        "predicted. Make a project of the example `table` for them."
    )
    Path("new.csv").write_text("w,y\n" + "".join(f"{row},{row % 25}\n" for row in range(100)))
    assert len(set(tables.from_csv("new.csv", "y", []).labels)) == 25


def test_a_table_that_is_not_there_gets_one_sentence() -> None:
    sentence = "no.csv does not exist. Put your table there, or set dataset.file."
    assert sentence_of(lambda: tables.from_csv("no.csv", "label", [])) == sentence


# --- a source of one's own

GREY_N = np.zeros((12, 1, 4, 4), dtype=np.float32)
TWO_N = np.arange(12) % 2


def test_a_source_may_give_words_or_numbers_with_names() -> None:
    words = prepare(Path("words"), lambda: RawDataset(GREY_N, np.array(["no", "yes"])[TWO_N]), **SHARES)
    names = prepare(Path("names"), lambda: RawDataset(GREY_N, TWO_N, ["yes", "no"]), **SHARES)
    assert words["classes"] == ["no", "yes"]
    assert names["classes"] == ["yes", "no"]


@pytest.mark.parametrize(("raw", "sentence"), [
    (RawDataset(GREY_N[:, 0], TWO_N),
     "a dataset must give images of the shape N C H W and N labels, got (12, 4, 4) and 12. "
     "Grey images without a channel get one by images[:, None]."),
    (RawDataset(GREY_N, TWO_N[:3]),
     "a dataset must give images of the shape N C H W and N labels, got (12, 1, 4, 4) and 3. "
     "Grey images without a channel get one by images[:, None]."),
    (RawDataset(GREY_N, TWO_N, features=["width"]),
     "a dataset with features must give rows of the shape N F and N labels, got (12, 1, 4, 4) and 12."),
    (RawDataset(GREY_N, TWO_N + 1, ["a", "b"]), "with 2 names of classes, labels must be 0 to 1."),
    (RawDataset(np.where(GREY_N >= 0, 1e39, 0), TWO_N),
     "the data hold values that are no numbers, or too large for float32. Fix them in the raw data."),
    (RawDataset(np.where(GREY_N[:, 0, 0] >= 0, np.inf, 0), TWO_N, features=list("abcd")),
     "the data hold values that are no numbers, or too large for float32. Fix them in the raw data."),
    (RawDataset(np.where(np.arange(48).reshape(12, 4) % 2, 1e308, -1e308), TWO_N, features=list("abcd")),
     "the data hold values that are no numbers, or too large for float32. Fix them in the raw data."),
    (RawDataset(GREY_N * np.nan, TWO_N),
     "the data hold values that are no numbers, or too large for float32. Fix them in the raw data."),
    (RawDataset(GREY_N, np.arange(12) // 3), "12 examples of 4 classes cannot be split by test_fraction=0.25: "
     "The test_size = 3 should be greater or equal to the number of classes = 4. "
     "Add examples, or change the fraction."),
])  # fmt: skip
def test_a_mistake_in_a_dataset_gets_one_sentence(raw: RawDataset, sentence: str) -> None:
    assert sentence_of(lambda: prepare(Path("mine"), lambda: raw, **SHARES)) == sentence


# --- downloads


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` and notes the ranges that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/file.gz": CONTENT}
        self.ranges: list[str | None] = []
        self.takes_ranges = True
        self.cut_after: int | None = None  # the first answer ends after so many bytes
        self.failures: list[int] = []  # statuses of the next answers
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        content = self.server.files.get(self.path)
        if content is None or self.server.failures:
            return self.send_error(self.server.failures.pop() if self.server.failures else 404)
        offset = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.takes_ranges else 0
        if offset and offset >= len(content):
            return self.send_error(416)
        self.send_response(206 if offset else 200)
        if offset:
            self.send_header("Content-Range", f"bytes {offset}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - offset))
        self.end_headers()
        end, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(content[offset:end])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAITS_S", (0, 0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


REFUSED = (errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
FILE, PART = Path("raw/file.gz"), Path("raw/file.gz.part")


def fetch(server: Server, content: bytes = CONTENT) -> None:
    download.download(f"{server.address}/file.gz", FILE, hashlib.sha256(content).hexdigest())


def leave_a_part(content: bytes) -> None:
    PART.parent.mkdir()
    PART.write_bytes(content)


def test_a_file_is_downloaded_once(server: Server) -> None:
    fetch(server)
    fetch(server)
    assert FILE.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert not PART.exists()


def test_a_cut_connection_goes_on_from_there(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.cut_after = 100_000
    fetch(server)
    assert FILE.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]
    assert "the connection was cut. Trying again in 0 s." in capsys.readouterr().err


def test_a_part_of_an_earlier_start_is_continued(server: Server) -> None:
    leave_a_part(CONTENT[:1000])
    fetch(server)
    assert FILE.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize(("takes_ranges", "part", "num_requests"), [
    (False, CONTENT[:1000], 1),  # the server sends all of it again
    (True, b"old" * 1000, 2),  # the file on the server has changed since
    (True, CONTENT, 1),  # killed before the last step
    (True, CONTENT + b"more", 2),
])  # fmt: skip
def test_a_part_that_does_not_help_does_no_harm(
    server: Server, takes_ranges: bool, part: bytes, num_requests: int
) -> None:
    server.takes_ranges = takes_ranges
    leave_a_part(part)
    fetch(server)
    assert FILE.read_bytes() == CONTENT
    assert len(server.ranges) == num_requests


def test_what_is_not_the_file_is_deleted(server: Server) -> None:
    found, wanted = (hashlib.sha256(content).hexdigest()[:12] for content in (CONTENT, b"something else"))
    assert sentence_of(lambda: fetch(server, b"something else")) == (
        f"raw/file.gz.part is not the file that was expected from {server.address}/file.gz: "
        f"its SHA-256 is {found}..., wanted {wanted}.... It was deleted; start again to download it once more."
    )
    assert list(Path("raw").iterdir()) == []


def test_a_damaged_file_is_deleted(server: Server) -> None:
    FILE.parent.mkdir()
    FILE.write_bytes(b"half")
    assert sentence_of(lambda: fetch(server)).startswith("raw/file.gz is damaged: its SHA-256 is ")
    fetch(server)
    assert FILE.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_but_not_for_what_it_does_not_have(server: Server) -> None:
    server.failures = [503, 429]
    fetch(server)
    assert len(server.ranges) == 3
    FILE.unlink()
    server.files = {}
    assert sentence_of(lambda: fetch(server)) == (
        f"{server.address}/file.gz cannot be downloaded: the server answers 404 Not Found. Try again: the download "
        "resumes from here; or bring the file from elsewhere and put it into raw."
    )
    assert len(server.ranges) == 4


def test_no_network_gets_one_sentence_and_keeps_the_part(server: Server) -> None:
    leave_a_part(b"x")
    server.address = "http://127.0.0.1:9"  # nobody listens
    assert sentence_of(lambda: fetch(server)) == (
        f"http://127.0.0.1:9/file.gz cannot be downloaded: {ConnectionRefusedError(*REFUSED)}. Try again: "
        "the download resumes from here; or bring the file from elsewhere and put it into raw."
    )
    assert PART.read_bytes() == b"x"


def test_ctrl_c_keeps_the_part(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bar:
        def __init__(self, **settings: object) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, num_bytes: int) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(download, "tqdm", Bar)
        with pytest.raises(KeyboardInterrupt):
            fetch(server)
    kept = PART.stat().st_size
    assert 0 < kept < len(CONTENT)
    fetch(server)
    assert server.ranges == [None, f"bytes={kept}-"]
    assert FILE.read_bytes() == CONTENT


def test_only_servers_of_the_web_are_asked() -> None:
    sentence = "file:///etc/passwd is no address of a server: it must begin with http:// or https://."
    assert sentence_of(lambda: download.download("file:///etc/passwd", FILE, "")) == sentence


# --- Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def test_the_test_images_of_the_authors_stay_the_test_split(server: Server) -> None:
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 80), ("t10k", 20)):
        arrays[f"{part}-images-idx3-ubyte.gz"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte.gz"] = (np.arange(count) % 10).astype(np.uint8)
    server.files = {f"/{name}": idx(array) for name, array in arrays.items()}
    checksums = {name: hashlib.sha256(server.files[f"/{name}"]).hexdigest() for name in FILES}
    source = partial(datasets.fashion_mnist, "raw", f"{server.address}/", checksums)
    record = prepare(Path("data/fashion_mnist"), source, **SHARES)
    assert record["rows"] == {"train": 60, "val": 20, "test": 20}
    assert record["classes"][9] == "Ankle boot"
    data = compose("train", ["data=fashion_mnist"]).data
    assert (data.input_shape, data.num_classes) == (record["input_shape"], len(record["classes"]))
    for kind, name in (("images", "images-idx3"), ("labels", "labels-idx1")):
        found, wanted = stored("data/fashion_mnist", "test", kind), arrays[f"t10k-{name}-ubyte.gz"]
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
    assert compose("prepare", ["dataset=fashion_mnist"]).dataset.sha256.keys() == checksums.keys()


def test_a_file_of_another_kind_gets_one_sentence(server: Server) -> None:
    server.files = {f"/{name}": gzip.compress(b"text") for name in FILES}
    checksum = hashlib.sha256(server.files[f"/{FILES[0]}"]).hexdigest()
    sentence = "raw/train-images-idx3-ubyte.gz is not a file of the kind of MNIST's: gzip, and in it IDX of bytes."
    checksums = dict.fromkeys(FILES, checksum)
    assert sentence_of(lambda: datasets.fashion_mnist("raw", server.address, checksums)) == sentence

"""Image folders and .npz archives that nobody should trust."""

import io
import os
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from PIL import Image

from capture.data.image_files import read_images
from capture.data.images import ImagePreprocessor, ImageSet
from evidence.errors import InputError
from tests.security import hostile_items as hostile
from tests.security.refusals import refusal, refused

GREY = ImagePreprocessor(1, (8, 8), labels={"cat": 0, "dog": 1})
SECONDS = 5.0
LABEL = np.zeros(2, dtype=np.int64)
IMAGE = np.zeros((2, 8, 8), dtype=np.uint8)


def read(path, preprocessor=GREY) -> str:
    """What is said of a file; nothing may take long."""
    start = time.process_time()
    message = refusal(lambda: read_images(path, preprocessor))
    assert time.process_time() - start < SECONDS
    return message


def member(array: np.ndarray) -> bytes:
    """An array as it lies in an archive."""
    buffer = io.BytesIO()
    npy.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claiming(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """An array whose header says what it likes."""
    text = header.encode("latin-1") + b"\n"
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + data


def says(shape: str, descr: str = "'|u1'") -> bytes:
    return claiming(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")


def whole(image: bytes | None = None, label: bytes | None = None, **other) -> bytes:
    members = {
        "image.npy": member(IMAGE) if image is None else image,
        "label.npy": member(LABEL) if label is None else label,
    }
    return hostile.zipped(members | other)


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


def flagged(data: bytes, flags: int) -> bytes:
    """Every member said to be of another make (encrypted, for one)."""
    out = bytearray(data)
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = out.find(mark)
        while place >= 0:
            out[place + at : place + at + 2] = struct.pack("<H", flags)
            place = out.find(mark, place + 4)
    return bytes(out)


def method(data: bytes, number: int) -> bytes:
    """Every member said to be compressed in another way."""
    out = bytearray(data)
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        place = out.find(mark)
        while place >= 0:
            out[place + at : place + at + 2] = struct.pack("<H", number)
            place = out.find(mark, place + 4)
    return bytes(out)


def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed, pytest.warns(UserWarning):
        for each in ("image.npy", "image.npy", "label.npy"):
            packed.writestr(each, member(IMAGE if each[0] == "i" else LABEL))
    return buffer.getvalue()


def many_members(count: int) -> bytes:
    return hostile.zipped({f"a{n}": b"" for n in range(count)})


ARCHIVES = {
    "56 PiB": lambda: whole(says("(2, 63050394783186944)")),
    "beyond 64 bits": lambda: whole(says("(2, 1" + "0" * 19 + ", 5)")),
    "negative": lambda: whole(says("(-2, 8, 8)")),
    "negative twice": lambda: whole(says("(-2, -8, 8)")),
    "shape of floats": lambda: whole(says("(2.0, 8)")),
    "shape of truth": lambda: whole(says("(True, 8, 8)")),
    "shape of one number": lambda: whole(says("5")),
    "shape of text": lambda: whole(says("('a',)")),
    "shape without end": lambda: whole(says("(" + "1," * 2000 + ")")),
    "no shape": lambda: whole(claiming("{'descr': '|u1'}")),
    "a header that is code": lambda: whole(claiming("__import__('os').abort()")),
    "a header of brackets": lambda: whole(claiming("(" * 9000)),
    "a header of minus signs": lambda: whole(claiming("-" * 9000 + "1")),
    "a header of a megabyte": lambda: whole(
        claiming("{" + " " * 10**6, version=b"\2\0")
    ),
    "a header cut short": lambda: whole(b"\x93NUMPY\1\0\xff\xff{"),
    "version 9": lambda: whole(claiming("{}", version=b"\x09\0")),
    "version 3": lambda: whole(changed(member(IMAGE), b"NUMPY\1\0", b"NUMPY\3\0")),
    "objects": lambda: whole(member(np.array([{}, 1], dtype=object))),
    "object labels": lambda: whole(label=member(np.array([0, None], dtype=object))),
    "object ids": lambda: whole(**{"id.npy": member(np.array([{}, 1], dtype=object))}),
    "said to be objects": lambda: whole(says("(2, 8, 8)", "'|O'")),
    "fields": lambda: whole(member(np.zeros(2, dtype=[("a", "u1"), ("b", "O")]))),
    "plain fields": lambda: whole(member(np.zeros(2, dtype=[("a", "u1")]))),
    "an unknown type": lambda: whole(says("(2,)", "'|Z9'")),
    "a type of 2 GB": lambda: whole(says("(2,)", "'<U536870912'")),
    "a type of no bytes": lambda: whole(says("(10000000000,)", "'|S0'")),
    "raw bytes": lambda: whole(b"no array at all"),
    "raw labels": lambda: whole(label=b"\0\1"),
    "an empty member": lambda: whole(b""),
    "cut": lambda: whole(member(IMAGE)[:-7]),
    "longer than it says": lambda: whole(member(IMAGE) + b"\0" * 9),
    "numbers of 16 bits": lambda: whole(member(IMAGE.astype(np.uint16))),
    "signed bytes": lambda: whole(member(IMAGE.astype(np.int8))),
    "complex": lambda: whole(member(IMAGE.astype(complex))),
    "dates": lambda: whole(member(IMAGE.astype("m8[s]"))),
    "text": lambda: whole(member(IMAGE.astype(str))),
    "no sides": lambda: whole(member(np.zeros((2, 0, 0), dtype=np.uint8))),
    "one number": lambda: whole(member(np.array(3, np.uint8))),
    "no images": lambda: whole(member(IMAGE[:0]), member(LABEL[:0])),
    "float labels": lambda: whole(label=member(LABEL.astype(float))),
    "text labels": lambda: whole(label=member(LABEL.astype(str))),
    "labels in two dimensions": lambda: whole(label=member(LABEL[None])),
    "labels beyond 63 bits": lambda: whole(
        label=member(np.full(2, 2**64 - 1, dtype=np.uint64))
    ),
    "too few labels": lambda: whole(label=member(LABEL[:1])),
    "ids twice": lambda: whole(**{"id.npy": member(np.array(["a", "a"]))}),
    "ids in two dimensions": lambda: whole(
        **{"id.npy": member(np.array([["a", "b"]]))}
    ),
    "ids that are bytes": lambda: whole(
        **{"id.npy": member(np.array([b"a", b"\xff"]))}
    ),
    "ids that are floats": lambda: whole(**{"id.npy": member(np.array([0.5, 1.5]))}),
    "ids beyond Unicode": lambda: whole(
        **{
            "id.npy": claiming(
                "{'descr': '<U1', 'fortran_order': False, 'shape': (2,)}",
                struct.pack("<II", 0x110000, 0xFFFFFFFF),
            )
        }
    ),
    "ids with half characters": lambda: whole(
        **{"id.npy": member(np.array(["\ud800", "b"]))}
    ),
    "too few ids": lambda: whole(**{"id.npy": member(np.array(["a"]))}),
    "encrypted": lambda: flagged(whole(), 0x1),
    "strongly encrypted": lambda: flagged(whole(), 0x41),
    "patched": lambda: flagged(whole(), 0x20),
    "an unknown compression": lambda: method(whole(), 99),
    "said to be deflated": lambda: method(whole(), 8),
    "said to be LZMA": lambda: method(whole(), 14),
    "a wrong checksum": lambda: changed(
        whole(member(np.full((2, 8, 8), 7, dtype=np.uint8))), b"\7" * 128, b"\6" * 128
    ),
    "one name twice": twice,
    "only another name": lambda: hostile.zipped({"../image.npy": member(IMAGE)}),
    "no members": lambda: hostile.zipped({}),
    "5,000 members": lambda: many_members(5000),
    "a plain array": lambda: member(IMAGE),
    "a pickle": lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "nothing": lambda: b"",
    "only an end": lambda: b"PK\5\6" + b"\0" * 18,
    "an end that lies": lambda: b"PK\5\6" + b"\xff" * 18,
    "an end of many": lambda: b"PK\5\6\0\0\0\0\xff\xff\xff\xff" + b"\0" * 10,
    "cut in the middle": lambda: whole()[:200],
    "cut at the end": lambda: whole()[:-10],
    "its beginning gone": lambda: whole()[100:],
    "names that are no text": lambda: changed(
        whole(), b"image.npy", b"\xff\xfe\xfd\xfc\xfb.npy"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archives(tmp_path, name):
    path = tmp_path / "a.npz"
    path.write_bytes(ARCHIVES[name]())
    message = read(path)
    assert "a.npz" in message or name in (
        "no sides", "text", "complex", "dates", "signed bytes", "numbers of 16 bits",
        "one number", "no images", "too few labels", "too few ids", "ids twice",
    )  # fmt: skip


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """Five megabytes that say truly that they are five gigabytes."""
    path = tmp_path / "a.npz"
    side = 72_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        with packed.open("image.npy", "w", force_zip64=True) as file:
            file.write(says(f"(1, {side}, {side})"))
            # What follows is never read, so little of it is there.
            file.write(b"\0" * (1 << 20))
        packed.writestr("label.npy", member(LABEL[:1]))
    assert "is too large when unpacked" in read(path)


def test_small_images_that_a_model_enlarges_are_counted_at_its_size(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path, image=np.zeros((60_000, 1, 1), dtype=np.uint8), label=np.zeros(60_000, dtype=int)
    )
    assert "is too large when unpacked" in read(path, ImagePreprocessor(3, (224, 224)))


@pytest.mark.parametrize("name", hostile.PLACES)
def test_what_lies_where_an_archive_should(tmp_path, name):
    path = hostile.PLACES[name](tmp_path / "f.npz")
    read(path)


@pytest.mark.parametrize("given", [None, 5, b"a.npz", [], object(), "", "~nobody-here/a"])
def test_what_is_no_path(given):
    refusal(lambda: read_images(given, GREY))


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, data: bytes = b"", *, depth=8, colour=0, extra=b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def picture(kind: str, size=(8, 8), mode="L", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def moving(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


GOOD_PNG = picture("PNG")
PICTURES = {
    "a bomb of 10 gigapixels": (lambda: png(100_000, 100_000), "png"),
    "a bomb of 100 megapixels": (lambda: png(10_000, 10_000), "png"),
    "sides beyond 31 bits": (lambda: png(2**32 - 1, 2**32 - 1), "png"),
    "no width": (lambda: png(0, 8), "png"),
    "an unknown depth": (lambda: png(8, 8, depth=77), "png"),
    "16 bits": (lambda: picture("PNG", mode="I;16"), "png"),
    "32 bits": (lambda: picture("TIFF", mode="I"), "png"),
    "cut": (lambda: GOOD_PNG[:-20], "png"),
    "cut in the head": (lambda: GOOD_PNG[:20], "png"),
    "pixels missing": (lambda: png(64, 64, b"\0" * 8), "png"),
    "noise in the pixels": (lambda: GOOD_PNG[:45] + b"\xff" * 9 + GOOD_PNG[54:], "png"),
    "a wrong checksum": (lambda: GOOD_PNG[:29] + b"\0\0\0\0" + GOOD_PNG[33:], "png"),
    "text of 5 MB": (
        lambda: png(
            8, 8, b"\0" * 72,
            extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 5_000_000, 9)),
        ),
        "png",
    ),
    "a moving PNG": (lambda: moving("PNG"), "png"),
    "a moving GIF": (lambda: moving("GIF"), "gif"),
    "a moving WebP": (lambda: moving("WEBP"), "webp"),
    "nothing": (lambda: b"", "png"),
    "text": (lambda: b"no picture", "jpg"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "png"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "png"),
    "TIFF under another name": (lambda: picture("TIFF"), "png"),
    "ICO under another name": (lambda: picture("ICO"), "png"),
    "JPEG, cut": (lambda: picture("JPEG", (64, 64))[:300], "jpg"),
    "JPEG of 65,500 pixels a side": (
        lambda: picture("JPEG").replace(b"\0\x08\0\x08\1", b"\xff\xdc\xff\xdc\1"),
        "jpg",
    ),
    "BMP of two gigapixels": (
        lambda: picture("BMP")[:18]
        + struct.pack("<ii", 2**31 - 1, -(2**31))
        + b"\0" * 64,
        "bmp",
    ),
    "BMP, cut": (lambda: picture("BMP")[:60], "bmp"),
    "GIF, cut": (lambda: picture("GIF", (99, 99))[:60], "gif"),
    "WebP, cut": (lambda: picture("WEBP", (99, 99), "RGB")[:30], "webp"),
    "a GIF of 65,535 a side": (
        lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
        "gif",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_hostile_pictures(tmp_path, name):
    make, ending = PICTURES[name]
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / f"x.{ending}"
    path.write_bytes(make())
    assert f"x.{ending}" in read(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "a folder",
        "a pipe",
        "a pipe behind a link",
        "a socket",
        "a link to itself",
        "a link to nothing",
        "a sparse terabyte",
    ],
)
def test_what_lies_where_a_picture_should(tmp_path, name):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(GOOD_PNG)
    hostile.PLACES[name](tmp_path / "cat" / "x.png")
    read(tmp_path)


def test_devices_are_no_pictures(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.png").symlink_to("/dev/zero")
    assert "got a device" in read(tmp_path)


@pytest.mark.parametrize(
    "layout",
    [
        ("x.png", "cat/a.png"),  # outside the classes
        ("cat/a.png", "cat/b.tif"),  # of a kind that is not read
        ("cat/a.png", "cat/more/b.png"),  # in a folder of its own
        ("cat/more/b.png",),
        ("cat/a.txt",),
        ("bird/a.png",),  # no such class
        ("-1/a.png",),
        ("\u00b2/a.png",),
        ("9" * 200 + "/a.png",),
        ("\x1b[31m/a.png",),
        ("cat\nexhume: fine/a.png",),
        ("cat/\udcff.png",),  # a name that is not UTF-8
        (),
    ],
)
def test_folders_that_would_be_read_in_part(tmp_path, layout):
    for each in layout:
        path = tmp_path / os.fsdecode(os.fsencode(each))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GOOD_PNG)
    read(tmp_path)


def test_a_folder_within_itself(tmp_path):
    (tmp_path / "cat").symlink_to(tmp_path)
    read(tmp_path)


def test_hidden_files_and_notes_are_no_pictures(tmp_path):
    (tmp_path / "cat" / ".thumbs").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.txt").write_text("x")
    (tmp_path / "cat" / "labels.csv").write_text("x")
    (tmp_path / "cat" / ".DS_Store").write_text("x")
    (tmp_path / "cat" / "a.png").write_bytes(GOOD_PNG)
    assert read_images(tmp_path, GREY).ids == ("cat/a.png",)


PIXELS = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    "parts",
    [
        (None, LABEL, ("a", "b")),
        (IMAGE, LABEL, ("a", "b")),
        (PIXELS.int(), LABEL, ("a", "b")),
        (PIXELS, None, ("a", "b")),
        (PIXELS, [0, 0], ("a", "b")),
        (PIXELS, LABEL.astype(float), ("a", "b")),
        (PIXELS, LABEL[None], ("a", "b")),
        (PIXELS, LABEL, None),
        (PIXELS, LABEL, "ab"),
        (PIXELS, LABEL, (1, 2)),
        (PIXELS, LABEL, ("a", "\ud800")),
        (PIXELS, LABEL, ("a", "a")),
        (PIXELS * float("nan"), LABEL, ("a", "b")),
        (PIXELS[0], LABEL, ("a", "b")),
        (PIXELS[:0], LABEL[:0], ()),
    ],
)
def test_sets_of_what_are_no_images(parts):
    refusal(lambda: ImageSet(*parts))


def test_many_images_of_one_name_are_refused_at_once():
    count = 20_000
    ids = (*map(str, range(count - 1)), "0")
    start = time.process_time()
    pixels, labels = torch.zeros(count, 1, 1, 1), np.zeros(count, dtype=int)
    assert "have the id '0'" in refusal(lambda: ImageSet(pixels, labels, ids))
    assert time.process_time() - start < SECONDS


def test_the_command_line_says_the_same(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(ARCHIVES["56 PiB"]())
    message = refused("plan", "--original", tmp_path, "--unlearned", tmp_path,
                   "--forget", path, "--retain", path)  # fmt: skip
    assert "exhume: " in message


def test_a_good_archive_is_read_in_either_order(tmp_path):
    image = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
    for name, each in (("c", image), ("f", np.asfortranarray(image))):
        np.savez(tmp_path / f"{name}.npz", image=each, label=LABEL)
    both = [read_images(tmp_path / f"{name}.npz", GREY, "x") for name in "cf"]
    assert both[0].digest == both[1].digest
    try:
        read_images(Path(tmp_path / "c.npz"), ImagePreprocessor(1, (8, 8), labels={}, classes=2))
    except InputError:  # pragma: no cover
        pytest.fail("a good archive was refused")

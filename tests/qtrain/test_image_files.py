"""Image files: which are found, in which order, and which colours they are read as."""

from __future__ import annotations

import io
import os
import signal
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qtrain import data
from qtrain.data.cache import decode_all
from qtrain.data.decode import image_size, read
from qtrain.data.imagefolder import SUFFIXES, class_images, load_imagefolder

#: torchvision.datasets.folder.IMG_EXTENSIONS, of version 0.27
TORCHVISION = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def whole(path: Path, size: int = 16) -> NDArray[np.uint8]:
    """The image as it is, (size, size, 3)."""
    return read(path, size, lambda w, h: (0, 0, w, h))


def colours(size: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def rounded(values: NDArray[Any], largest: int) -> NDArray[np.uint8]:
    """Grey of any range in 8 bits, in Python's integers: the nearest of value * 255 / largest."""
    grey = [
        (510 * value + largest) // (2 * largest) for value in values.astype(int).ravel().tolist()
    ]
    return np.repeat(np.array(grey, np.uint8).reshape(*values.shape, 1), 3, axis=2)


# The tree -----------------------------------------------------------------------------------------


def torchvisions(root: Path) -> list[tuple[str, int]]:
    """The samples as torchvision's make_dataset finds them (torchvision/datasets/folder.py)."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    return [
        (os.path.join(folder, name), classes.index(one))
        for one in classes
        for folder, _, names in sorted(os.walk(root / one, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(TORCHVISION)
    ]


def grow(root: Path) -> None:
    """Files at several depths, whose order by name, by path and by depth all differ."""
    for place in (
        "a/2.png", "a/10.PNG", "a/b/1.jpg", "a/b.c/1.Jpeg", "a/b/z/9.webp", "a/b-/0.tif",
        "a/B/1.TIFF", "b/only/deep/3.bmp", "b/only/2.pgm", "b/.x/../1.ppm", "Z/1.png",
    ):  # fmt: skip
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".tif": "TIFF", ".pgm": "PPM"}.get(path.suffix.lower())
        image = Image.fromarray(colours())
        (image.convert("L") if path.suffix == ".pgm" else image).save(path, kind)
    (root / "b" / ".x").rmdir()
    (root / "elsewhere").mkdir()
    Image.fromarray(colours()).save(root / "elsewhere" / "1.png")
    (root / "a" / "link").symlink_to(root / "elsewhere")


def test_what_torchvision_reads_is_read_in_its_order(tmp_path: Path) -> None:
    assert SUFFIXES == TORCHVISION
    for part in ("train", "val"):
        grow(tmp_path / part)
    tree = load_imagefolder(tmp_path, size=80)
    assert isinstance(tree.train, data.FileSplit)
    found = list(zip(map(str, tree.train.paths), tree.train.labels.tolist(), strict=True))
    assert found == torchvisions(tmp_path / "train") and len(found) == 13
    assert tree.classes == ("Z", "a", "b", "elsewhere")
    small = load_imagefolder(tmp_path, size=16).train
    assert isinstance(small, data.TensorSplit)
    for path, image in zip(tree.train.paths, small.images, strict=True):
        with Image.open(path) as file:
            right = np.asarray(file.convert("RGB"))
        assert np.array_equal(image.permute(1, 2, 0), right), path


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "a" / "deep").mkdir(parents=True)
        Image.fromarray(colours()).save(tmp_path / part / "a" / "deep" / "1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_imagefolder(tmp_path)
    for place in ("a/deep/notes.txt", "a/1.gif", "a/.hidden.png", "loose.png"):
        (tmp_path / "train" / place).write_text("x")
    named = r"train: 4 not read, .*: a/.hidden.png, a/1.gif, a/deep/notes.txt, ...$"
    with pytest.warns(UserWarning, match=named):
        assert len(load_imagefolder(tmp_path).train) == 1


def test_links_in_a_circle_and_links_to_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.fromarray(colours()).save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    with pytest.raises(data.DataError, match="b/up: is a link to a folder that it lies in"):
        class_images(tmp_path)
    (tmp_path / "a" / "b" / "up").unlink()
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "none.png")
    with pytest.raises(data.DataError, match=r"2\.png: is no file, or a link to none"):
        class_images(tmp_path)


def test_a_tree_may_be_deeper_than_python_recurs(tmp_path: Path) -> None:
    deep = str(tmp_path / "a")
    os.mkdir(deep)
    for _ in range(1200):
        deep += "/a"
        os.mkdir(deep)
    Image.fromarray(colours()).save(f"{deep}/1.png")
    assert [str(path) for path in class_images(tmp_path)[0]["a"]] == [f"{deep}/1.png"]
    os.unlink(f"{deep}/1.png")
    os.removedirs(deep)


def test_a_pipe_with_an_images_name_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(colours()).save(tmp_path / part / "a" / "1.png")
    split = load_imagefolder(tmp_path, size=80).train
    assert isinstance(split, data.FileSplit)
    pipe = tmp_path / "train" / "a" / "1.png"
    pipe.unlink()
    os.mkfifo(pipe)
    signal.setitimer(signal.ITIMER_REAL, 60)  # ends the test's process where one waits
    try:
        with pytest.raises(data.DataError, match=r"1\.png: is no file"):
            load_imagefolder(tmp_path)
        for use in (image_size, whole):  # it took the place of a file that was found
            with pytest.raises(data.DataError, match=r"1\.png: not a readable image \(it is no f"):
                use(pipe)
        pipe.unlink()
        Image.fromarray(colours()).save(pipe)
        cached = decode_all(split, tmp_path / "cache")
        (name,) = (tmp_path / "cache").iterdir()
        name.unlink()
        os.mkfifo(name)
        assert np.array_equal(decode_all(split, tmp_path / "cache"), cached)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# Colours ------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def png(pixels: NDArray[Any], kind: int, *extra: bytes) -> bytes:
    """A PNG of colour type `kind` (PNG specification, 11.2.2) with 16-bit samples."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def tiff(pixels: NDArray[Any], bits: int, *, white: bool = False, sample: int = 1) -> bytes:
    """An uncompressed TIFF of one channel, in the byte order of `pixels` (TIFF 6.0, section 8).

    white   whether 0 is white;  sample: 1 unsigned, 2 signed, 3 float
    """
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    content = pixels.tobytes()
    if bits == 12:  # two values in three bytes, the first bits first
        a, b = pixels.astype(int).ravel()[::2], pixels.astype(int).ravel()[1::2]
        content = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white else 1),
            (273, 8), (277, 1), (278, height), (279, len(content)), (339, sample)]  # fmt: skip
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8 + len(content))
    return head + content + struct.pack(order + "H", len(tags)) + entries + bytes(4)


#: All 65,536 values of 16 bits.
ALL = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize(
    ("suffix", "content", "right"),
    [
        (".png", png(ALL, 0), rounded(ALL, 65535)),
        (".tif", tiff(ALL.astype("<u2"), 16), rounded(ALL, 65535)),
        (".tif", tiff(ALL.astype(">u2"), 16), rounded(ALL, 65535)),
        (".tif", tiff(ALL.astype("<u2"), 16, white=True), rounded(65535 - ALL.astype(int), 65535)),
        (".tif", tiff((ALL % 4096).astype("<u2"), 12), rounded(ALL % 4096, 4095)),
        (".pgm", b"P5 256 256 65535\n" + ALL.astype(">u2").tobytes(), rounded(ALL, 65535)),
    ],
    ids=["png", "tiff", "tiff big-endian", "tiff white is 0", "tiff of 12 bits", "pgm"],
)  # fmt: skip
def test_grey_of_any_depth_is_scaled_and_rounded(
    tmp_path: Path, suffix: str, content: bytes, right: NDArray[np.uint8]
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert np.array_equal(whole(path, 256), right)


@pytest.mark.parametrize("largest", [1, 100, 254, 256, 4095, 65534])
def test_a_pgm_of_any_largest_value_is_scaled(tmp_path: Path, largest: int) -> None:
    grey = ALL.astype(int) % (largest + 1)
    kind = ">u2" if largest > 255 else "u1"
    content = f"P5 256 256 {largest}\n".encode() + grey.astype(kind).tobytes()
    (tmp_path / "a.pgm").write_bytes(content)
    got = whole(tmp_path / "a.pgm", 256).astype(int)
    exact = (grey * 255 / largest)[..., None]
    assert np.abs(got - exact).max() <= 0.5 + 255 / 65535  # Pillow rounds to 16 bits first


def test_colours_of_16_bits_keep_their_upper_8(tmp_path: Path) -> None:
    wide = np.random.default_rng(1).integers(0, 65536, (16, 16, 4), dtype=np.uint16)
    for kind, channels in ((2, 3), (6, 4), (4, 2)):
        (tmp_path / "a.png").write_bytes(png(wide[..., :channels], kind))
        colour = wide[..., :1].repeat(3, axis=2) if kind == 4 else wide[..., :3]
        assert np.array_equal(whole(tmp_path / "a.png"), (colour >> 8).astype(np.uint8))


def test_modes_of_up_to_8_bits_are_the_colours_they_mean(tmp_path: Path) -> None:
    rgb = Image.fromarray(colours())
    palette = rgb.quantize(64)
    clear = Image.fromarray(np.dstack([colours(), colours()[..., 0]]))
    cases: list[tuple[str, Image.Image, dict[str, Any], NDArray[np.uint8]]] = [
        ("png", rgb.convert("1"), {}, np.asarray(rgb.convert("1").convert("RGB"))),
        ("png", rgb.convert("L"), {}, np.asarray(rgb.convert("L"))[..., None].repeat(3, 2)),
        ("png", rgb.convert("LA"), {}, np.asarray(rgb.convert("L"))[..., None].repeat(3, 2)),
        ("png", palette, {}, np.asarray(palette.convert("RGB"))),
        ("png", palette, {"transparency": 3}, np.asarray(palette.convert("RGB"))),
        ("png", clear, {}, colours()),  # transparency is dropped, as torchvision does
        ("tiff", rgb.convert("CMYK"), {}, colours()),  # its black is 0 here
        ("bmp", rgb, {}, colours()),
        ("bmp", palette, {}, np.asarray(palette.convert("RGB"))),
        ("webp", rgb, {"lossless": True}, colours()),
        ("ppm", rgb, {}, colours()),
    ]  # fmt: skip
    for suffix, image, options, right in cases:
        path = tmp_path / f"a.{suffix}"
        image.save(path, **options)
        assert np.array_equal(whole(path), right), (suffix, image.mode)


@pytest.mark.parametrize(
    "content",
    [
        tiff(np.ones((16, 16), "<i2"), 16, sample=2),
        tiff(np.ones((16, 16), "<u4"), 32),
        tiff(np.ones((16, 16), "<i4"), 32, sample=2),
        tiff(np.ones((16, 16), "<f4"), 32, sample=3),
        b"Pf 16 16 -1.0\n" + np.ones(256, "<f4").tobytes(),
    ],
    ids=["signed 16", "unsigned 32", "signed 32", "float", "pfm"],
)
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tiff").write_bytes(content)
    with pytest.raises(data.DataError, match=r"a\.tiff.*of kind [IF] have no known range"):
        whole(tmp_path / "a.tiff")


def test_a_tree_of_deep_grey_is_not_white(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).save(
            tmp_path / part / "a" / "1.png"
        )
    train = load_imagefolder(tmp_path).train
    assert isinstance(train, data.TensorSplit)
    assert np.array_equal(train.images[0, 0], np.arange(256).reshape(16, 16))


# What is no picture -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "gif"])
def test_several_images_in_a_file_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(colours() + i) for i in range(2)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for use in (whole, image_size):
        with pytest.raises(data.DataError, match="several images"):
            use(path)


def test_a_photograph_with_a_preview_and_a_picture_under_another_name_are_read(
    tmp_path: Path,
) -> None:
    frames = [Image.fromarray(colours() // 2 + i) for i in range(2)]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert image_size(tmp_path / "a.jpg") == (16, 16)
    frames[0].save(tmp_path / "b.gif")
    (tmp_path / "b.gif").rename(tmp_path / "b.jpg")
    assert whole(tmp_path / "b.jpg").shape == (16, 16, 3)


def test_formats_that_start_other_programs_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")

    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    with pytest.raises(data.DataError, match="none of BMP, GIF, JPEG"):
        whole(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_of_a_png_that_unpacks_to_gigabytes_is_refused_or_passed_over(
    tmp_path: Path, kind: bytes
) -> None:
    packed = zlib.compress(bytes(2**26))
    between = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
    (tmp_path / "a.png").write_bytes(png(ALL[:16, :16], 0, chunk(kind, b"name" + between + packed)))
    try:
        assert np.array_equal(whole(tmp_path / "a.png"), rounded(ALL[:16, :16], 65535))
    except data.DataError as error:
        assert "a.png" in str(error)


def test_damaged_images_of_every_format_are_read_or_named(tmp_path: Path) -> None:
    """900 damaged files: no other error than ours."""
    draw = np.random.default_rng(2)
    image = Image.fromarray(colours())
    sources = [png(ALL[:16, :16], 0), tiff(ALL[:16, :16].astype(">u2"), 16)]
    for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        with io.BytesIO() as out:
            image.save(out, kind)
            sources.append(out.getvalue())
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it repairs
        for source in sources:
            for _ in range(100):
                content = bytearray(source[: draw.integers(1, len(source) + 1)])
                for place in draw.integers(0, min(len(content), 200), 3):
                    content[place] = draw.integers(0, 256)
                (tmp_path / "a.png").write_bytes(content)
                for use in (whole, image_size):
                    try:
                        use(tmp_path / "a.png")
                    except data.DataError as error:
                        assert str(error).startswith(f"{tmp_path / 'a.png'}: not a readable image")
                        refused += 1
    assert refused > 300

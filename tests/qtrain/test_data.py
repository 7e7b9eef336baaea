from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import random
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qtrain import data
from qtrain.data import draws
from qtrain.data.cifar import read_python
from qtrain.data.imagefolder import load_imagefolder
from qtrain.data.transforms import random_boxes

# Python 3.12 and later warn when a process with threads forks; torch's loader does just that.
pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def memory_split(n: int = 23, size: int = 6, **augmentation: Any) -> data.TensorSplit:
    return data.TensorSplit(
        images=torch.from_numpy(pixels(n, 3, size, size)),
        labels=torch.arange(n),
        num_classes=n,
        normalisation=data.Normalisation(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)),
        augmentation=data.Augmentation(**augmentation),
    )


def same(a: list[Any], b: list[Any]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


# ---- digits


def test_digits_are_the_published_ones() -> None:
    with np.load(Path(data.__file__).with_name("digits.npz"), allow_pickle=False) as file:
        archive = {name: file[name] for name in ("images", "labels")}
    content = archive["images"].tobytes() + archive["labels"].tobytes()
    expected = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert hashlib.sha256(content).hexdigest() == expected
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    assert np.array_equal(archive["images"], digits.images)
    assert np.array_equal(archive["labels"], digits.target)


def test_the_fingerprint_of_images_is_of_their_labels_and_classes() -> None:
    digits = data.load("digits")
    assert isinstance(digits.test, data.TensorSplit)
    labels = digits.test.labels.clone()
    labels[-1] = (labels[-1] + 1) % 10
    relabelled = replace(digits, test=replace(digits.test, labels=labels))
    renamed = replace(digits, classes=("zero", *digits.classes[1:]))
    found = [one.fingerprint() for one in (data.load("digits"), relabelled, renamed)]
    assert found[0] == digits.fingerprint() and len(set(found)) == 3


def test_digits_split_is_fixed_stratified_and_complete() -> None:
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.sizes == {"in_channels": 1, "image_size": 8, "num_classes": 10}
    assert digits.num_classes == 10
    train, test = (torch.bincount(s.labels) for s in (digits.train, digits.test))
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # within one image of the exact share
    assert ((train + test) * (360 / 1797) - test).abs().max() < 1
    assert digits.test.labels[:10].tolist() == data.load("digits").test.labels[:10].tolist()
    images, _ = next(iter(data.Batches(digits.train, batch_size=1437, train=False)))
    assert abs(images.mean()) < 1e-5 and abs(images.std() - 1) < 1e-3


def test_digits_split_never_changes() -> None:
    test = data.load("digits").test
    assert isinstance(test, data.TensorSplit)
    digest = hashlib.sha256(test.images.numpy().tobytes()).hexdigest()
    assert digest == "aa3d24aaa49f3d692abed4d4fca04dc45adc85eb8bc9f926dc9e8caae70cc131"


# ---- MNIST


def write_idx(path: Path, array: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "") -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": pixels(12, 28, 28),
        "train-labels-idx1-ubyte": pixels(12) % 10,
        "t10k-images-idx3-ubyte": pixels(5, 28, 28),
        "t10k-labels-idx1-ubyte": pixels(5) % 10,
    }
    for name, array in arrays.items():
        write_idx(folder / (name + suffix), array)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
@pytest.mark.parametrize("inside", [".", "MNIST/raw"])
def test_mnist_decodes_exactly(tmp_path: Path, suffix: str, inside: str) -> None:
    arrays = write_mnist(tmp_path / inside, suffix)
    mnist = data.load("mnist", data_dir=tmp_path)
    assert isinstance(mnist.train, data.TensorSplit) and isinstance(mnist.test, data.TensorSplit)
    assert np.array_equal(mnist.train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(mnist.test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(mnist.train.labels.numpy(), arrays["train-labels-idx1-ubyte"])
    assert np.array_equal(mnist.test.labels.numpy(), arrays["t10k-labels-idx1-ubyte"])
    assert mnist.sizes == {"in_channels": 1, "image_size": 28, "num_classes": 10}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def bad_label(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")


MNIST_DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("train-images-idx3-ubyte", cut, "damaged.*sizes"),
    ("train-images-idx3-ubyte", lambda p: p.write_bytes(b""), "an empty file"),
    ("train-images-idx3-ubyte", lambda p: p.write_bytes(p.read_bytes()[:9]), "damaged"),
    ("t10k-labels-idx1-ubyte", lambda p: p.write_bytes(b"\0\0\x0d" + p.read_bytes()), "magic"),
    ("t10k-labels-idx1-ubyte", bad_label, "label 10 is out of range"),
    ("t10k-labels-idx1-ubyte", Path.unlink, "is missing; looked in .*https://"),
    ("train-labels-idx1-ubyte", lambda p: write_idx(p, pixels(7) % 10), "12 images but .* 7 labe"),
    ("t10k-images-idx3-ubyte", lambda p: write_idx(p, pixels(5, 14, 14)), "need the same"),
]


@pytest.mark.parametrize(("name", "damage", "message"), MNIST_DAMAGE)
def test_damaged_mnist_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    write_mnist(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(data.DataError, match=message):
        data.load("mnist", data_dir=tmp_path)


def test_mnist_without_a_pixel_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for prefix, count in (("train", 12), ("t10k", 5)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", pixels(count, 0, 0))
    with pytest.raises(data.DataError, match="without a pixel"):
        data.load("mnist", data_dir=tmp_path)


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path, ".gz")
    cut(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(data.DataError, match=r"train-images.*cannot be read"):
        data.load("mnist", data_dir=tmp_path)


# ---- CIFAR-10

CIFAR_NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def python2_pickle(images: Any, labels: list[int]) -> bytes:
    """The opcodes of the official files: protocol 2 as Python 2 wrote it, with raw byte strings."""
    rows = images.reshape(len(images), -1)
    raw = rows.tobytes()
    out = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    out += b"K\x00\x85U\x01b\x87R(K\x01" + b"J" + len(rows).to_bytes(4, "little")
    out += b"J" + rows.shape[1].to_bytes(4, "little") + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    out += b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    out += b"U\x06labels](" + b"".join(b"K" + bytes((y,)) for y in labels) + b"eu."
    return out


def write_cifar(folder: Path, form: str) -> list[tuple[Any, list[int]]]:
    folder.mkdir(parents=True)
    parts = []
    for name in CIFAR_NAMES:
        images, labels = pixels(4, 3, 32, 32), (pixels(4) % 10).tolist()
        parts.append((images, labels))
        if form == "bin":
            records = [
                bytes((y,)) + image.tobytes() for image, y in zip(images, labels, strict=True)
            ]
            (folder / f"{name}.bin").write_bytes(b"".join(records))
        elif form == "python2":
            (folder / name).write_bytes(python2_pickle(images, labels))
        else:
            content = {b"data": images.reshape(4, -1), b"labels": labels}
            (folder / name).write_bytes(pickle.dumps(content, protocol=int(form)))
    return parts


@pytest.mark.parametrize("form", ["bin", "python2", "2", "4", "5"])
@pytest.mark.parametrize("place", ["parent", "itself", "archive"])
def test_cifar10_decodes_exactly(tmp_path: Path, form: str, place: str) -> None:
    short = "bin" if form == "bin" else "py"
    folder = tmp_path / f"cifar-10-batches-{short}"
    parts = write_cifar(folder, form)
    where = tmp_path
    if place == "itself":
        where = folder
    if place == "archive":
        where = tmp_path / "archive"
        where.mkdir()
        name = {"bin": "cifar-10-binary", "py": "cifar-10-python"}[short]
        with tarfile.open(where / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(folder, arcname=folder.name)
    cifar = data.load("cifar10", data_dir=where)
    assert isinstance(cifar.train, data.TensorSplit) and isinstance(cifar.test, data.TensorSplit)
    assert np.array_equal(cifar.train.images, np.concatenate([x for x, _ in parts[:-1]]))
    assert cifar.train.labels.tolist() == [y for _, labels in parts[:-1] for y in labels]
    assert np.array_equal(cifar.test.images, parts[-1][0])
    assert cifar.test.labels.tolist() == parts[-1][1]
    assert cifar.classes[0] == "airplane" and cifar.sizes["image_size"] == 32


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "touched"

    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {victim}",)

    write_cifar(tmp_path / "cifar-10-batches-py", "4")
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    good = pickle.loads(batch.read_bytes())
    for content in (Attack(), {b"data": Attack(), b"labels": [1]}):
        batch.write_bytes(pickle.dumps(content))
        with pytest.raises(data.DataError, match=r"data_batch_3: .*holds no 'data'"):
            data.load("cifar10", data_dir=tmp_path)
    batch.write_bytes(pickle.dumps({**good, b"more": Attack()}))
    assert len(data.load("cifar10", data_dir=tmp_path).train) == 20
    assert not victim.exists()


def test_every_cut_of_a_pickle_is_a_data_error() -> None:
    whole = python2_pickle(pixels(1, 3, 32, 32), [3])
    for end in [*range(160), *range(len(whole) - 40, len(whole))]:
        with pytest.raises(data.DataError):
            read_python(whole[:end], "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "'data' that is an"),
        ({"labels": [1]}, "no 'data'"),
        ({"data": np.zeros((2, 9), np.uint8), "labels": [1, 2]}, "no 'data'"),
        ({"data": np.zeros((2, 1536), np.uint8), "labels": [1]}, "no 'data'"),
        ({"data": np.zeros((2, 3072), np.uint8, "F"), "labels": [1, 2]}, "row by row"),
        ({"data": np.zeros((1, 3072)), "labels": [1]}, "array of bytes"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 images but 1 labels"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "label 10 is out of range"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["1"]}, "1 images but 0 labels"),
    ],
)
def test_a_pickle_of_something_else_is_named(content: Any, message: str) -> None:
    for protocol in (2, 4, 5):
        with pytest.raises(data.DataError, match=message):
            read_python(pickle.dumps(content, protocol), "x")


def test_damaged_cifar10_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar(folder, "bin")
    batch = folder / "data_batch_2.bin"
    whole = batch.read_bytes()
    for content, message in [
        (whole[:-1], "data_batch_2.*damaged"),
        (whole[:-3073], "data_batch_2.*3 images, other training files have 4"),
        (b"\x0b" + whole[1:], "data_batch_2.*label 11 is out of range"),
        (b"", "data_batch_2.*damaged"),
    ]:
        batch.write_bytes(content)
        with pytest.raises(data.DataError, match=message):
            data.load("cifar10", data_dir=tmp_path)
    batch.unlink()
    with pytest.raises(data.DataError, match=r"data_batch_2.bin missing in .*https://"):
        data.load("cifar10", data_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(data.DataError, match=r"cifar-10-python.tar.gz.*https://"):
        data.load("cifar10", data_dir=tmp_path / "empty")
    (tmp_path / "empty" / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b"x" * 600)[:-9])
    with pytest.raises(data.DataError, match=r"tar\.gz: damaged"):
        data.load("cifar10", data_dir=tmp_path / "empty")


# ---- image folders


def write_tree(root: Path, size: tuple[int, int], suffix: str = ".png", per_class: int = 5) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                image = Image.fromarray(pixels(size[1], size[0], 3))
                image.save(root / part / name / f"{i}{suffix}")


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    write_tree(tmp_path / "small", (16, 16))
    return tmp_path / "small"


@pytest.fixture
def large_tree(tmp_path: Path) -> Path:
    write_tree(tmp_path / "large", (90, 70), ".JPEG")
    return tmp_path / "large"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True], ids=["memory", "mapped"])
def test_small_images_are_decoded_once_and_exactly(
    small_tree: Path, tmp_path: Path, workers: int, cached: bool
) -> None:
    cache = tmp_path / "cache" if cached else None
    for _ in range(2):
        tree = data.load("imagefolder", data_dir=small_tree, workers=workers, cache_dir=cache)
        assert isinstance(tree.train, data.TensorSplit)
        assert tree.classes == ("cat", "dog") and tree.sizes["image_size"] == 16
        assert tree.train.labels.tolist() == [0] * 5 + [1] * 5
        with Image.open(small_tree / "train" / "dog" / "2.png") as image:
            expected = np.asarray(image).transpose(2, 0, 1)
        assert np.array_equal(tree.train.images[7], expected)
        if cached:  # a damaged cache file is made anew, a file that is being written left alone
            files = sorted((tmp_path / "cache").iterdir())
            assert [f.suffix for f in files] == [".npy", ".npy"]
            cut(files[0])


def test_a_changed_image_is_decoded_again(small_tree: Path, tmp_path: Path) -> None:
    path = small_tree / "val" / "cat" / "0.png"
    before = data.load("imagefolder", data_dir=small_tree, cache_dir=tmp_path / "cache").test
    Image.fromarray(pixels(16, 16, 3)).save(path)
    os.utime(path, ns=(1, 1))
    after = data.load("imagefolder", data_dir=small_tree, cache_dir=tmp_path / "cache").test
    assert isinstance(before, data.TensorSplit) and isinstance(after, data.TensorSplit)
    assert not torch.equal(before.images[0], after.images[0])
    assert torch.equal(before.images[1:], after.images[1:])


def test_large_images_give_the_same_batches_for_any_worker_count(large_tree: Path) -> None:
    runs = []
    for workers in (0, 2):
        tree = data.load("imagefolder", data_dir=large_tree, workers=workers)
        assert isinstance(tree.train, data.FileSplit)
        assert tree.sizes == {"in_channels": 3, "image_size": 224, "num_classes": 2}
        whole = list(data.Batches(tree.train, batch_size=4, seed=3, epoch=1))
        rest = list(data.Batches(tree.train, batch_size=4, seed=3, epoch=1, start=1))
        assert same(whole[1:], rest)
        runs.append(whole + list(data.Batches(tree.test, batch_size=4, train=False)))
    assert same(*runs)
    assert runs[0][0][0].shape == (4, 3, 224, 224) and runs[0][0][0].dtype == torch.float32


def test_a_large_image_is_evaluated_at_its_resized_centre(large_tree: Path) -> None:
    tree = load_imagefolder(large_tree, size=70)
    images, _ = next(iter(data.Batches(tree.test, batch_size=1, train=False)))
    with Image.open(large_tree / "val" / "cat" / "0.JPEG") as image:
        side = 70 * 224 / 256
        box = (45 - side / 2, 35 - side / 2, 45 + side / 2, 35 + side / 2)
        part = np.asarray(image.resize((70, 70), Image.Resampling.BILINEAR, box=box))
    raw = images[0] * torch.tensor(tree.test.normalisation.std).view(-1, 1, 1)
    raw += torch.tensor(tree.test.normalisation.mean).view(-1, 1, 1)
    assert np.array_equal(raw.round().numpy(), part.transpose(2, 0, 1))


def test_large_images_can_be_shrunk_into_memory(large_tree: Path) -> None:
    tree = data.load("imagefolder", data_dir=large_tree, image_size=32)
    assert isinstance(tree.train, data.TensorSplit)
    assert tree.train.images.shape == (10, 3, 32, 32)


def test_random_crops_stay_inside_and_cover_the_stated_areas() -> None:
    n = 2000
    boxes = random_boxes([(90, 70)] * n, np.arange(n), seed=0, epoch=0)
    left, top, right, bottom = np.array(boxes).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 90 and bottom.max() <= 70
    area = (right - left) * (bottom - top) / 6300
    ratio = (right - left) / (bottom - top)
    assert 0.07 < area.min() and area.max() <= 1  # rounded to whole pixels, hence 0.07
    assert 0.7 < ratio.min() and ratio.max() < 1.42
    # a strip fits no attempt: the central square
    assert random_boxes([(400, 4)], np.arange(1), seed=0, epoch=0) == [(198.0, 0.0, 202.0, 4.0)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [None, 80], ids=["small", "large"])
def test_an_undecodable_image_is_named(small_tree: Path, workers: int, size: int | None) -> None:
    path = small_tree / "train" / "dog" / "3.png"
    for content in (b"not an image", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(data.DataError, match=r"^\S*dog/3.png: not a readable image"):
            tree = data.load("imagefolder", data_dir=small_tree, workers=workers, image_size=size)
            list(data.Batches(tree.train, batch_size=4))


def test_broken_trees_are_named(tmp_path: Path, small_tree: Path) -> None:
    (small_tree / "train" / "emu").mkdir()
    (small_tree / "train" / "emu" / "notes.txt").write_text("no image")
    with pytest.raises(data.DataError, match=r"train/emu: holds no image"):
        data.load("imagefolder", data_dir=small_tree)
    Image.fromarray(pixels(16, 16, 3)).save(small_tree / "train" / "emu" / "a.png")
    with pytest.raises(data.DataError, match=r"differ in classes: \['emu'\]"):
        data.load("imagefolder", data_dir=small_tree)
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(data.DataError, match=r"missing in .*bare, which holds train"):
        data.load("imagefolder", data_dir=tmp_path / "bare")
    (tmp_path / "bare" / "test").mkdir()
    with pytest.raises(data.DataError, match="holds no class folders"):
        data.load("imagefolder", data_dir=tmp_path / "bare")


# ---- batches


def test_an_epoch_shows_every_sample_once_in_an_order_of_its_own() -> None:
    split = memory_split()
    orders = []
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        labels = [y for _, y in data.Batches(split, batch_size=5, seed=seed, epoch=epoch)]
        orders.append(torch.cat(labels).tolist())
        assert sorted(orders[-1]) == list(range(23))
    assert len({tuple(order) for order in orders}) == 3
    plain = [y for _, y in data.Batches(split, batch_size=5, train=False)]
    assert torch.cat(plain).tolist() == list(range(23))


def test_an_epoch_resumed_at_any_batch_goes_on_with_the_same_batches() -> None:
    split = memory_split(padding=2, flip=True)
    whole = list(data.Batches(split, batch_size=5, seed=7, epoch=2))
    for start in range(6):
        rest = data.Batches(split, batch_size=5, seed=7, epoch=2, start=start)
        assert len(rest) == 5 - start
        assert same(whole[start:], list(rest))


def test_augmentation_belongs_to_the_sample_not_to_its_batch() -> None:
    split = memory_split(padding=2, flip=True)
    found = []
    for size in (4, 23):
        epoch = data.Batches(split, batch_size=size, seed=1)
        found.append({int(y): x for xs, ys in epoch for x, y in zip(xs, ys, strict=True)})
    assert all(torch.equal(found[0][i], found[1][i]) for i in range(23))
    again = {int(y): x for xs, ys in data.Batches(split, batch_size=23, seed=1, epoch=1)
             for x, y in zip(xs, ys, strict=True)}  # fmt: skip
    assert any(not torch.equal(again[i], found[0][i]) for i in range(23))


def test_augmentation_is_a_shift_and_a_mirror_image() -> None:
    split = memory_split(n=200, padding=1, flip=True)
    images = split.images
    out = split.augmentation(images, np.arange(200), seed=0, epoch=0)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    seen = set()
    for i in range(200):
        for y in range(3):
            for x in range(3):
                part = padded[i, :, y : y + 6, x : x + 6]
                for flip, candidate in enumerate((part, part.flip(-1))):
                    if torch.equal(out[i], candidate):
                        seen.add((i, y, x, flip))
    assert {i for i, *_ in seen} == set(range(200))
    assert len({(y, x, flip) for _, y, x, flip in seen}) == 18
    assert split.augmentation(images, np.arange(200), seed=0, epoch=0).dtype == torch.uint8
    plain, _ = next(iter(data.Batches(split, batch_size=200, train=True, augment=False)))
    order = data.Batches(split, batch_size=200).indices()[0]
    assert torch.equal(plain, split.normalisation(images[order]))


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_every_batch_evenly(drop_last: bool) -> None:
    split = memory_split(padding=1)
    for world in (1, 2, 3):
        ranks = [
            list(data.Batches(split, batch_size=4, rank=r, world_size=world, drop_last=drop_last))
            for r in range(world)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        labels: list[int] = []
        for step in zip(*ranks, strict=True):
            assert len({len(y) for _, y in step}) == 1
            labels += [int(v) for _, y in step for v in y]
        full = 23 // (4 * world) * 4 * world
        if drop_last:
            assert len(set(labels)) == len(labels) == full
        else:
            assert set(labels) == set(range(23)) and len(labels) == 23 + -23 % world
        # the first k samples are those of a single process with the batches taken together
        alone = [y for _, y in data.Batches(split, batch_size=4 * world)]
        assert labels[:full] == torch.cat(alone).tolist()[:full]


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9])
def test_ranks_evaluate_each_sample_once(n: int) -> None:
    split = memory_split(n=n)
    seen = []
    for rank in range(3):
        batches = data.Batches(split, batch_size=2, rank=rank, world_size=3, train=False)
        found = list(batches)
        assert len(found) == len(batches) and all(len(y) for _, y in found)
        seen += [int(v) for _, y in found for v in y]
    assert sorted(seen) == list(range(n))


def test_no_global_random_state_is_touched(large_tree: Path) -> None:
    files = data.load("imagefolder", data_dir=large_tree, workers=1).train
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for split in (memory_split(padding=2, flip=True), files):
        list(data.Batches(split, batch_size=5))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_draws_are_uniform_and_independent() -> None:
    n = 1 << 16
    kinds = [(0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1)]
    u = [draws.uniform(np.arange(n), seed=s, epoch=e, purpose=p) for s, e, p in kinds]
    for i, a in enumerate(u):
        assert 0 <= a.min() and a.max() < 1
        assert abs(a.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5  # 5 sigma
        assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 5 / n**0.5
        for b in u[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / n**0.5
    counts = np.bincount(draws.below(9, np.arange(n), seed=0, epoch=0, purpose=1), minlength=9)
    assert len(counts) == 9 and np.abs(counts - n / 9).max() < 5 * (n / 9) ** 0.5


def test_the_order_of_an_epoch_never_changes() -> None:
    assert draws.permutation(8, seed=0, epoch=0).tolist() == [1, 4, 3, 2, 5, 7, 6, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": True}, "batch_size: got True"),
        ({"batch_size": 24, "drop_last": True}, "only 23 samples"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 0.5}, "seed: got 0.5"),
        ({"epoch": "1"}, "epoch: got '1'"),
        ({"rank": 1}, "rank: got 1, need an integer from 0 to 0"),
        ({"world_size": 0}, "world_size: got 0"),
        ({"start": 6}, "start: got 6, need an integer from 0 to 5"),
    ],
)
def test_bad_arguments_of_batches_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        data.Batches(memory_split(), **{"batch_size": 5, **arguments})


def test_wrong_shapes_and_labels_of_a_split_are_refused() -> None:
    good = memory_split()
    for change, message in [
        ({"images": good.images.float()}, r"float32, need \(N, C, H, W\) uint8"),
        ({"images": good.images[0]}, "images are"),
        ({"labels": good.labels[:5]}, "23 images, but labels are"),
        ({"labels": good.labels - 1}, "label -1 is out of range"),
        ({"num_classes": 22}, "label 22 is out of range"),
        ({"images": good.images[:0], "labels": good.labels[:0]}, "holds no images"),
    ]:
        fields = {f: getattr(good, f) for f in ("images", "labels", "num_classes", "normalisation")}
        with pytest.raises(data.DataError, match=message):
            data.TensorSplit(**{**fields, **change})


# ---- load


def test_bad_arguments_of_load_are_refused(tmp_path: Path, small_tree: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("cifar", {}, "got 'cifar'.*did you mean 'cifar10'"),
        ("mnist", {}, "no folder given"),
        ("mnist", {"data_dir": tmp_path / "no"}, "no, which does not exist"),
        ("digits", {"data_dir": tmp_path}, "digits are part of the package"),
        ("digits", {"image_size": 32}, "image_size: got 32, but digits images are 8"),
        ("digits", {"cache_dir": tmp_path}, "cache_dir.*needs no decoding"),
        ("digits", {"workers": -1}, "workers: got -1"),
        ("digits", {"context": 64}, "context: got 64, but digits holds images, not text"),
        ("imagefolder", {"data_dir": small_tree, "context": 64}, "context: got 64, but imagefol"),
        ("imagefolder", {"data_dir": small_tree, "image_size": 0}, "image_size: got 0"),
        (
            "imagefolder",
            {"data_dir": small_tree, "image_size": 96, "cache_dir": tmp_path},
            "cache_dir: only for images up to 64 pixels",
        ),
        (
            "imagefolder",
            {"data_dir": small_tree, "cache_dir": small_tree / "train" / "cat" / "0.png"},
            "cache_dir: cannot write",
        ),
    ]
    for name, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            data.load(name, **arguments)
    assert issubclass(data.DataError, ValueError)


def test_the_names_are_known() -> None:
    assert data.names() == ["cifar10", "digits", "imagefolder", "mnist", "text"]
    assert data.names("images") == ["cifar10", "digits", "imagefolder", "mnist"]
    assert data.names("text") == ["text"]

"""Files from elsewhere, damaged or made to harm: found, named, and never waited for."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import pickle
import random
import signal
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_cases import Forked, quiet, rewrite, small, unchecked

from qtrain import compare, data, diagnose
from qtrain.data.cifar import read_python
from qtrain.files.plain_json import line as checked_line
from qtrain.files.plain_json import lines as checked_lines
from qtrain.files.plain_json import parse
from qtrain.files.tensor_file import Damaged, read_tensors
from qtrain.files.whole import lock, opened
from qtrain.inspection.row import Row
from qtrain.inspection.rows import read_monitor
from qtrain.reports.rows import read_rows
from qtrain.training.checkpoint import CheckpointError, load_checkpoint
from qtrain.training.folder import FILES, describe, open_run
from qtrain.training.metrics import MetricsLog, check_metrics, read_metrics
from qtrain.training.record import read_run
from qtrain.training.train import train
from qtrain.weights.history import NormHistory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a monitor and an update; tests copy from it."""
    runs = tmp_path_factory.mktemp("runs")
    train(small(runs, epochs=1, monitor=2, update="bf16"), say=quiet)
    return runs / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in finished.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends the test's process where something waits for a pipe."""
    signal.setitimer(signal.ITIMER_REAL, 60)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


# Flipped bits -------------------------------------------------------------------------------------


def flipped(content: bytes, count: int = 200) -> Iterator[bytes]:
    """The content with one bit changed, at places that are the same each time."""
    draw = random.Random(0)
    for _ in range(count):
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        yield content[:place] + bytes((content[place] ^ 1 << bit,)) + content[place + 1 :]


def accepted(path: Path, read: Callable[[], Any], same: Callable[[Any, Any], bool]) -> list[int]:
    """Of 200 flips of the file: those that are neither refused nor harmless."""
    whole, right, wrong = path.read_bytes(), read(), []
    for number, content in enumerate(flipped(whole)):
        path.write_bytes(content)
        try:
            if not same(read(), right):
                wrong.append(number)
        except ValueError as error:
            assert path.name in str(error), error
    path.write_bytes(whole)
    return wrong


def same_text(a: object, b: object) -> bool:
    """Bit for bit: Python writes floats so that they read back."""
    return repr(a) == repr(b)


def resumed(run: Path) -> Any:
    """What a resumed run takes from its folder."""
    config = small(run.parent, epochs=1, monitor=2, update="bf16", resume=True)
    with open_run(config, say=quiet) as (folder, stored):
        describe(folder, config, torch.device("cpu"))
        MetricsLog(folder.metrics, keep=stored.metrics_bytes if stored else 0).close()
        metrics = read_metrics(folder.metrics) if stored else None
        return (folder / "config.json").read_bytes(), metrics


def test_a_flipped_bit_of_the_metrics_is_refused(run: Path) -> None:
    path = run / "metrics.jsonl"
    size = path.stat().st_size

    def read() -> list[Any]:
        check_metrics(path, size)
        return read_metrics(path)

    assert accepted(path, read, same_text) == []
    assert accepted(path, lambda: read_run(run).steps, same_text) == []


def test_a_flipped_bit_of_the_metrics_reaches_no_resumed_run(run: Path) -> None:
    path = run / "metrics.jsonl"
    assert resumed(run)[1] is not None
    for content in list(flipped(path.read_bytes(), 40)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: damaged"):
            resumed(run)


def test_a_flipped_bit_of_the_monitors_record_is_refused(run: Path) -> None:
    path = run / "monitor.jsonl"
    assert accepted(path, lambda: read_monitor(path), same_text) == []
    assert accepted(path, lambda: read_run(run).monitor, same_text) == []


def test_a_flipped_bit_of_the_configuration_reaches_no_run(run: Path) -> None:
    assert accepted(run / "config.json", lambda: resumed(run), same_text) == []
    (run / "checkpoint.pt").unlink()

    def fresh() -> Any:
        try:
            return resumed(run)
        except ValueError as error:  # of another configuration: it names the folder
            raise ValueError(f"config.json {error}") from error

    assert accepted(run / "config.json", fresh, same_text) == []


def test_a_flipped_bit_of_a_checkpoint_is_refused_or_changes_nothing(run: Path) -> None:
    path = run / "checkpoint.pt"

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
        return same_text(a, b)

    assert accepted(path, lambda: vars(load_checkpoint(path)), same) == []


def test_a_flipped_bit_of_a_norm_history_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "norms.pt"
    history = NormHistory()
    history.epochs = [{"layer": torch.randn(500)} for _ in range(3)]
    history.save(path)
    read = lambda: [epoch["layer"].tolist() for epoch in NormHistory.load(path).epochs]  # noqa: E731
    assert accepted(path, read, same_text) == []


def checked(values: list[dict[str, Any]], before: bytes = b"") -> bytes:
    """A file of lines with checksums, behind what is there."""
    content = before
    checksum = zlib.crc32(content)
    for one in values:
        text, checksum = checked_line(one, checksum)
        content += text
    return content


VALUES = [{"kind": "a", "x": i / 7, "text": 'quoted ", "crc": "00000000"}'} for i in range(4)]


def test_lines_are_plain_json_and_their_checksum_is_that_of_the_file() -> None:
    content = checked(VALUES)
    assert checked_lines(content) == (VALUES, zlib.crc32(content))
    for i, text in enumerate(content.splitlines()):
        plain = parse(text)
        end = content.index(text) + text.rindex(b', "crc"')
        assert int(plain.pop("crc"), 16) == zlib.crc32(content[:end])  # the definition
        assert plain == VALUES[i]
    with pytest.raises(ValueError, match="not JSON compliant"):
        checked_line({"x": float("nan")}, 0)


def test_missing_doubled_and_swapped_lines_are_found() -> None:
    a, b, c, d = checked(VALUES).splitlines(keepends=True)
    for wrong in (b + c + d, a + c + d, a + b + b + c + d, a + c + b + d):
        with pytest.raises(ValueError, match="the checksum of line"):
            checked_lines(wrong)
    assert checked_lines(a + b)[0] == VALUES[:2]  # the end is for the reader to know


def test_lines_of_before_there_were_checksums_are_read_but_not_behind_one() -> None:
    old = b'{"kind": "a", "x": 1}\n{"kind": "a", "x": 2}\n'
    assert checked_lines(old) == ([{"kind": "a", "x": 1}, {"kind": "a", "x": 2}], zlib.crc32(old))
    both = checked(VALUES, before=old)
    assert checked_lines(both)[0][2:] == VALUES
    with pytest.raises(ValueError, match="line 3 is wrong"):  # it covers the old lines too
        checked_lines(both.replace(b'"x": 1', b'"x": 3'))
    with pytest.raises(ValueError, match="line 5 has no checksum"):
        checked_lines(checked(VALUES) + old)
    with pytest.raises(ValueError, match="not as its last field"):
        checked_lines(b'{"crc": "00000000", "kind": "a"}\n')


def test_a_run_of_before_there_were_checksums_resumes_and_goes_on_with_them(
    finished: Path, tmp_path: Path
) -> None:
    whole = train(small(tmp_path / "whole", monitor=2), say=quiet)
    train(small(tmp_path, monitor=2, checkpoint_every=5), say=quiet)
    run = tmp_path / "run"
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    # the state after the last step, with the metrics as an earlier version wrote them
    old = b"".join(
        text.rpartition(b', "crc"')[0] + b"}\n"
        for text in (run / "metrics.jsonl").read_bytes().splitlines()
    )
    (run / "metrics.jsonl").write_bytes(old)
    torch.save({**content, "metrics_bytes": len(old)}, run / "checkpoint.pt")
    result = train(small(tmp_path, monitor=2, checkpoint_every=5, resume=True), say=quiet)
    drop = lambda lines: [{k: v for k, v in e.items() if "seconds" not in k} for e in lines]  # noqa: E731
    assert drop(result.epochs) == drop(whole.epochs)
    log = MetricsLog(run / "metrics.jsonl", keep=len(old))
    log.write(kind="new")
    log.close()
    assert (run / "metrics.jsonl").read_bytes() == checked([{"kind": "new"}], before=old)
    assert read_metrics(run / "metrics.jsonl", kind="new") == [{"kind": "new"}]


def test_a_monitors_record_tells_when_its_end_is_missing(run: Path) -> None:
    path = run / "monitor.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert parse(lines[0])["rows"] == len(lines) - 1
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"monitor\.jsonl: is no record.* but the header says"):
        read_monitor(path)
    rewrite(path, unchecked(path))
    assert len(read_monitor(path)) == len(lines) - 2  # files of before have no number


# Pipes --------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "page": read_run,
    "compare": lambda run: compare(run, run),
    "diagnose": diagnose,
    "resume": resumed,
    "checkpoint": lambda run: load_checkpoint(run / "checkpoint.pt"),
    "errors": lambda run: read_rows(run / "errors.json", Row),
    "monitor": lambda run: read_monitor(run / "monitor.jsonl"),
    "norms": lambda run: NormHistory.load(run / "checkpoint.pt"),
}
#: Which files each of them needs to read.
READ = {
    "page": ["config.json", "environment.json", "metrics.jsonl", "monitor.jsonl", "errors.json",
             "summary.json", "diverged.json"],
    "compare": ["config.json", "environment.json", "metrics.jsonl", "monitor.jsonl", "errors.json",
                "summary.json", "diverged.json"],
    "diagnose": ["monitor.jsonl", "updates.json"],
    "resume": list(FILES),
    "checkpoint": ["checkpoint.pt"],
    "errors": ["errors.json"],
    "monitor": ["monitor.jsonl"],
    "norms": ["checkpoint.pt"],
}  # fmt: skip


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_in_place_of_a_runs_file_is_an_error_and_not_waited_for(
    run: Path, reader: str
) -> None:
    for name in READ[reader]:
        whole = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
        with pytest.raises((ValueError, OSError), match=name.replace(".", r"\.")):
            READERS[reader](run)
        (run / name).unlink()
        if whole is not None:
            (run / name).write_bytes(whole)
    for name in FILES:  # what it does not read may be anything
        if name not in READ[reader]:
            (run / name).unlink(missing_ok=True)
            os.mkfifo(run / name)
    if reader not in ("norms", "resume"):
        READERS[reader](run)


@pytest.mark.usefixtures("alarm")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path / "link", "/dev/zero"):
        with pytest.raises(OSError, match="it is no file"):
            opened(path)
    with pytest.raises(IsADirectoryError):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"x")
    with opened(tmp_path / "file") as file:
        assert file.read() == b"x"
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / ".lock")
    with pytest.raises(OSError, match="it is no file"), lock(tmp_path / "run", say=quiet):
        pass


@pytest.mark.usefixtures("alarm")
def test_a_pipe_that_takes_a_files_place_meanwhile_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    before = os.stat(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("qtrain.files.whole.os.stat", lambda path: before)
    with pytest.raises(OSError, match="it is no file"):
        opened(tmp_path / "pipe")


# JSON ---------------------------------------------------------------------------------------------

ODD_JSON = {
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "closed brackets": b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "5,000 digits": b"1" * 5000 + b"\n",
    "400 digits": b'{"kind": "step", "step": 1' + b"0" * 400 + b"}\n",
    "layer of 400 digits": b'[{"layer": "a", "sqnr_db": 1' + b"0" * 400 + b"}]\n",
    "no text": b"\xff\xfe\xfd",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", ODD_JSON)
@pytest.mark.parametrize("reader", ["page", "compare", "diagnose", "resume", "errors", "monitor"])
def test_odd_json_is_one_error_that_names_the_file(run: Path, reader: str, kind: str) -> None:
    names = [name for name in READ[reader] if name.endswith((".json", ".jsonl"))]
    if reader == "resume":
        names = ["environment.json", "metrics.jsonl"]
    for name in names:
        whole = (run / name).read_bytes() if (run / name).exists() else b""
        content = ODD_JSON[kind]
        if name == "metrics.jsonl" and reader == "resume":
            content += b" " * len(whole)  # not too short
        (run / name).write_bytes(content)
        if not (name == "metrics.jsonl" and kind == "nothing" and reader != "resume"):
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                READERS[reader](run)
        (run / name).write_bytes(whole)
        if not whole:  # this run has none
            (run / name).unlink()


def test_integers_up_to_64_bits_are_read() -> None:
    for number in (2**64 - 1, -(2**63), 10**18, 0):
        assert parse(str(number)) == number
    for number in (2**64, -(2**63) - 1, 10**400):
        with pytest.raises(ValueError, match="beyond 64 bits"):
            parse(f'{{"a": [{number}]}}')
    assert parse("0.12345678901234567890123") == 0.12345678901234567890123
    assert parse(b"\xef\xbb\xbf[1]") == [1]  # a mark that editors put first


# Bombs --------------------------------------------------------------------------------------------

#: Runs one line with so little memory to spare that no bomb fits.
TIGHT = """
import resource, sys
from pathlib import Path
from qtrain import data
from qtrain.training.checkpoint import load_checkpoint
from qtrain.data.splits import FileSplit
from qtrain.data import decode
data.load("digits")
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    exec(sys.argv[1])
except ValueError as error:
    print(error)
"""


def refused(line: str, *, spare: int = 2**30) -> str:
    """What a process with so many bytes to spare says of it."""
    process = Forked(TIGHT, line, str(spare))
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return out


def gzip_bomb(head: bytes = b"", count: int = 500) -> bytes:
    """A gzip file of `head` and `count` times 10 MiB of zeros."""
    return gzip.compress(head) + count * gzip.compress(bytes(10 * 2**20))


def idx_head(*shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "magic number 00000000"),
        (idx_head(60000, 28, 28), "do not hold the sizes"),
        (idx_head(2**31, 2**31, 2**31), "its header states"),
        (b"\0\0\x0d\3" + idx_head(1024, 1024, 1023)[4:], "magic number 00000d03"),
    ],
    ids=["none", "of the official file", "of a huge one", "of floats"],
)
def test_a_packed_bomb_in_place_of_mnist_is_refused(
    tmp_path: Path, head: bytes, message: str
) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip_bomb(head))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_head(0))
    said = refused(f"data.load('mnist', data_dir={str(tmp_path)!r})")
    assert "train-images-idx3-ubyte.gz" in said and message in said


def test_a_header_that_states_what_is_not_there_takes_no_memory(tmp_path: Path) -> None:
    head = gzip.compress(idx_head(1024, 1024, 1023))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(head)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_head(0))
    said = refused(f"data.load('mnist', data_dir={str(tmp_path)!r})", spare=2**29)
    assert "do not hold the sizes" in said


def test_a_packed_bomb_in_place_of_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip_bomb())
    said = refused(f"data.load('text', data_dir={str(tmp_path)!r})")
    assert "a.txt.gz" in said and "it unpacks to more than" in said


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_packed_bomb_in_place_of_an_archive_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size, member.type = 500 * 10 * 2**20, kind
    head = member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip_bomb(head))
    said = refused(f"data.load('cifar10', data_dir={str(tmp_path)!r})")
    assert "cifar-10-python.tar.gz" in said and "it unpacks to more than" in said


def test_text_that_repeats_itself_is_read_packed(tmp_path: Path) -> None:
    text = "to be or not to be\n" * 200_000  # 4 MB of 11 KB: a ratio that only short texts have
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert len(data.load("text", data_dir=tmp_path).train.truth) > 3_000_000


def test_a_packed_checkpoint_is_refused(run: Path) -> None:
    path = run / "checkpoint.pt"
    whole = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), zipfile.ZIP_DEFLATED)
        new.writestr("archive/bomb", bytes(2**26), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="its entries are compressed"):
        load_checkpoint(path)


def test_entries_that_lie_on_one_another_are_refused(run: Path) -> None:
    path = run / "checkpoint.pt"
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        archive.filelist += [largest] * 30
        archive.writestr("archive/more", b"")  # so that the list is written anew
    with pytest.raises(CheckpointError, match="its entries are larger than the file"):
        load_checkpoint(path)


def test_plain_data_that_refers_to_itself_over_and_over_is_refused(tmp_path: Path) -> None:
    content: object = "x"
    for _ in range(60):
        content = [content, content]
    torch.save({"format": "x", "config": content}, tmp_path / "laughs.pt")
    with pytest.raises(Damaged, match="the same entries over and over"):
        read_tensors(tmp_path / "laughs.pt")
    shared = {"a": 1}
    torch.save([shared] * 20, tmp_path / "few.pt")
    assert read_tensors(tmp_path / "few.pt") == [shared] * 20


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x02]p2000000000\n.",
        b"\x80\x02}K\x01" + b"\x85" * 10**6 + b"K\x01s.",
    ],
    ids=["long put", "put", "tuples in tuples as a key"],
)
def test_a_pickle_that_fills_the_memory_or_the_stack_is_refused(content: bytes) -> None:
    with pytest.raises(data.DataError, match="no 'data'"):
        read_python(content, "x")


class Calls:
    """Pickled, the call of a function, and what its result is then told of its state."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


#: numpy's own, by which protocol 5 makes an array.
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
#: A dtype of objects, copied and told that it holds none: numpy takes bytes for their addresses.
ADDRESSES = Calls(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))


@pytest.mark.parametrize(
    "content",
    [
        Calls(FROM_BUFFER, (b"A" * 64, ADDRESSES, (8,), "C")),
        Calls(np.ndarray, ((10**6, 3072), np.dtype("u1"), b"A", 0, (0, 0))),
        Calls(codecs.encode, ("A", "hex")),
    ],
    ids=["objects at any address", "a byte for 3 GB", "twice as long each time"],
)
def test_a_pickle_gets_nothing_from_the_functions_that_it_names(content: object) -> None:
    with pytest.raises(data.DataError, match="no 'data'"):
        read_python(pickle.dumps({"data": content, "labels": []}, protocol=4), "x")

"""Files: written whole or not at all, locked, and read without running or unfolding what they may hold."""

import contextlib
import errno
import hashlib
import math
import os
import pickle
import threading
import zipfile
from functools import reduce
from pathlib import Path

import pytest
import torch
from filelock import SoftFileLock
from torch.utils.data import TensorDataset

from data import DataError, files, labels

SOAK = bool(os.environ.get("SOAK"))
PAIRS = {"tensors": (files.save_tensors, files.load_tensors), "pickle": (files.save_pickle, files.load_pickle)}
BOTH_KINDS = pytest.mark.parametrize(("save", "load"), PAIRS.values(), ids=PAIRS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_the_old_one_until_the_new_one_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    path, kept, synced = tmp_path / "new folder" / "file", tmp_path / "new folder" / "kept", []
    for content in (b"1", b"2"):
        files.atomic_write(path, lambda file, content=content: file.write(content), kept)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(path.read_bytes()), fsync(number)))
    files.atomic_write(path, lambda file: file.write(b"3"), kept)
    assert synced[0] == b"2"  # else a power cut could leave the new name with nothing in it
    assert contents(path.parent) == {"file": b"3", "kept": b"2"}


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt("stop"), OSError(errno.ENOSPC, "stop")])
def test_a_writer_that_fails_leaves_the_old_file(error, tmp_path):
    def write(file):
        file.write(b"half of it")
        raise error

    for before in ({}, {"file": b"old", "kept": b"older"}):
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(files.SaveError if isinstance(error, OSError) else type(error), match="stop"):
            files.atomic_write(tmp_path / "file", write, tmp_path / "kept")
        assert contents(tmp_path) == before


def test_a_lock_is_held_once_waited_for_and_ends_with_its_block(tmp_path):
    path = tmp_path / "new folder" / ".lock"
    with contextlib.ExitStack() as first:
        assert first.enter_context(files.lock(path))
        with pytest.raises(files.InUse, match=r"\.lock: held by another process"), files.lock(path):
            pytest.fail("two have it")
        with files.lock(tmp_path / "other") as other:
            assert other
        threading.Timer(0.3, first.close).start()
        with files.lock(path, patience=30) as alone:
            assert alone
    with pytest.raises(ZeroDivisionError), files.lock(path):
        raise ZeroDivisionError
    with files.lock(path) as alone:
        assert alone


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EROFS])
def test_where_there_are_no_locks_it_is_said(code, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    with files.lock(tmp_path / ".lock") as alone:
        assert alone is False


def test_a_soft_lock_is_not_taken_for_one(tmp_path, monkeypatch):
    """Which some versions of filelock make of a lock where there are none."""
    soft = type("Soft", (SoftFileLock,), {"__init__": lambda self, path, **options: super(soft, self).__init__(path)})
    monkeypatch.setattr(files, "FileLock", soft)
    for _ in range(2):
        with files.lock(tmp_path / ".lock") as alone:
            assert alone is False
            assert not (tmp_path / ".lock").exists()


@BOTH_KINDS
def test_values_there_and_back(save, load, tmp_path):
    value = {"loss": [0.5, math.inf], "name": "FloNet", "epochs": 2, "best": None, "done": True, "size": (1, 2)}
    save(tmp_path / "file", value)
    assert load(tmp_path / "file") == value


def test_tensors_that_share_their_numbers_are_not_refused(tmp_path):
    images, label = torch.rand(500, 1, 48, 60), torch.nn.Parameter(torch.tensor(labels.NO_DIGIT))
    files.save_tensors(tmp_path / "file", [(image, label) for image in images])
    image, same_label = files.load_tensors(tmp_path / "file")[499]
    assert torch.equal(image, images[499])
    assert torch.equal(same_label, label)
    assert not same_label.requires_grad


@BOTH_KINDS
def test_a_missing_file_is_named_and_a_drive_that_is_away_is_no_damage(save, load, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="file: no such file"):
        load(tmp_path / "file")

    def away(path, *more):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(files, "open", away, raising=False)
    monkeypatch.setattr(Path, "read_bytes", away)
    with pytest.raises(files.ReadError, match="file: cannot be read, Input/output error"):
        load(tmp_path / "file")


@BOTH_KINDS
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_garbage_is_called_damaged(save, load, tmp_path):
    """And not dangerous, which is kept for files that ask for code."""
    for content in (b"", b"PK", b"<!DOCTYPE html><html>Please log in</html>", bytes(3000), pickle.dumps(5)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(DataError, match=r"file: (damaged or truncated, or not a |a web page)"):
            load(tmp_path / "file")


@pytest.mark.slow
@BOTH_KINDS
def test_damage_anywhere_is_found_or_harmless(save, load, tmp_path):
    value = [torch.arange(6.0)] if load is files.load_tensors else ["FloNet", [0.5, 0.25]]
    save(tmp_path / "file", value)
    whole = (tmp_path / "file").read_bytes()
    for at in range(0, len(whole), 1 if SOAK else 5):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            (tmp_path / "file").write_bytes(damaged)
            with contextlib.suppress(DataError):  # not for an archive's padding and time stamps
                assert str(load(tmp_path / "file")) == str(value), at


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "results.json"
    assert files.load_json(path) == {}
    path.write_text("<<<<<<< ours", encoding="utf-8")
    with pytest.raises(DataError, match=r"results.json: damaged, expected JSON"):
        files.load_json(path)


def test_an_entry_marked_as_a_folder_is_damage(tmp_path):
    """By one bit that no checksum covers: torch would take what the memory holds for its numbers."""
    files.save_tensors(tmp_path / "file", torch.zeros(6))
    content = bytearray((tmp_path / "file").read_bytes())
    content[content.rindex(b"archive/data/0") - 8] |= 0x10  # in the archive's list of contents
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="file: damaged, its part archive/data/0"):
        files.load_tensors(tmp_path / "file")


class RunsCode(TensorDataset):
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch '{self.tensors}'",)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path, attack = tmp_path / "file", RunsCode()
    attack.tensors = marker = tmp_path / "it ran"
    for value in (attack, {"a": [([torch.zeros(1)], attack)]}):
        for archive in (True, False):
            torch.save(value, path, _use_new_zipfile_serialization=archive)
            with pytest.raises(DataError, match=rf"file: refused, it asks for {os.name}\.system, more than tensors"):
                files.load_tensors(path, [TensorDataset])
        files.save_pickle(path, value)
        with pytest.raises(DataError, match="file: refused, it asks for "):
            files.load_pickle(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "else this test would show nothing"


WITHIN_ITSELF = []
WITHIN_ITSELF.append(WITHIN_ITSELF)
OVERSIZED = {
    "a number": lambda: TensorDataset(torch.zeros(1, 1, 1, 1).expand(4_000_000, 1, 48, 60)),
    "lists": lambda: reduce(lambda value, _: [value] * 30, range(9), torch.zeros(6)),
    "deep": lambda: reduce(lambda value, _: [value], range(100), 1),
    "within itself": lambda: WITHIN_ITSELF,
    "without numbers": lambda: TensorDataset(torch.zeros(9, device="meta")),
    "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (9, 9)),
}


@pytest.mark.parametrize("kind", [*OVERSIZED, "archive"])
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Validating sparse")
def test_a_file_that_stands_for_more_than_it_holds_is_refused(kind, tmp_path):
    if kind == "archive":
        with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("archive/data/0", bytes(100_000_000))
    else:
        torch.save(OVERSIZED[kind](), tmp_path / "file")
    with pytest.raises(DataError, match=r"file: .*refused"):
        files.load_tensors(tmp_path / "file", [TensorDataset])


def test_a_pickle_that_would_fill_the_memory_is_read_without(tmp_path):
    """It puts a value at place 2^31 - 1 of the memo; the unpickler in C would take memory for as many."""
    content = pickle.PROTO + b"\x04" + pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + pickle.STOP
    (tmp_path / "file").write_bytes(content + b"sha256:" + hashlib.sha256(content).digest())
    assert files.load_pickle(tmp_path / "file") is None

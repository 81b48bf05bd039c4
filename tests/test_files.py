"""Files: written whole or not at all, locked, and read without running what they may hold."""

import contextlib
import errno
import os
import pickle
import time
from unittest.mock import Mock

import pytest
import torch
from helpers import contents

from data import DataError, files


def test_a_file_is_the_old_one_until_the_new_one_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    path, kept, synced, fsync = tmp_path / "new folder" / "file", tmp_path / "new folder" / "kept", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(path.exists() and path.read_bytes()), fsync(number)))
    for content in (b"1", b"2", b"3"):
        files.atomic_write(path, lambda file, content=content: file.write(content), kept)
    assert synced == [False, b"1", b"2"]  # else a power cut could leave the new name with nothing in it
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


def test_a_refused_replacement_is_tried_again_for_two_seconds(tmp_path, monkeypatch):
    """As on Windows, where a virus scanner, or OneDrive, holds a file."""
    refuse = Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    answers = [os.replace, refuse, refuse, refuse]
    monkeypatch.setattr(os, "replace", lambda *paths: (answers.pop() if answers else refuse)(*paths))
    files.save_json(tmp_path / "file", {})
    before = time.monotonic()
    with pytest.raises(files.SaveError, match=r"file: cannot be written, Input/output error"):
        files.save_json(tmp_path / "file", {"new": 1})
    assert 2 <= time.monotonic() - before < 5
    assert contents(tmp_path) == {"file": b"{}\n"}


@pytest.mark.parametrize("kind", ["tensors", "pickle"])
def test_damage_anywhere_is_found_or_harmless_and_a_missing_file_is_named(kind, tmp_path):
    save, load = getattr(files, f"save_{kind}"), getattr(files, f"load_{kind}")
    with pytest.raises(DataError, match="file: no such file"):
        load(tmp_path / "file")
    path, value = tmp_path / "file", {"loss": [0.5, torch.inf], "best": None, "size": (1, 2), "é": "FloNet"}
    save(path, value | ({"weights": torch.arange(6.0)} if kind == "tensors" else {}))
    whole, value = path.read_bytes(), load(path)
    for garbage in (b"", b"PK", b"<!DOCTYPE html><html>", bytes(3000), pickle.dumps(5), whole[:-9], whole[:60]):
        path.write_bytes(garbage)
        with pytest.raises(DataError, match="file: damaged, or not"):
            load(path)
    for at in range(0, len(whole), 5) if kind == "tensors" else ():  # a pickle has no checksum
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(DataError):  # not for an archive's padding and time stamps
            assert str(load(path)) == str(value), at


@pytest.mark.parametrize("content", [b"<<<<<<< ours", b"[1, 2]", b"3", b"[" * 99_999, b"\xff"])
def test_json_that_is_damaged_or_holds_no_names_is_refused_in_a_line(content, tmp_path):
    path = tmp_path / "results.json"
    assert files.load_json(path) == {}
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^[^\n]*results.json: damaged, expected JSON with named values: [^\n]+$"):
        files.load_json(path)
    files.save_json(path, {"é": [1, None]}, indent=1)
    assert files.load_json(path) == {"é": [1, None]}


@pytest.mark.parametrize("function", [os._exit, getattr, eval])
def test_a_file_that_asks_for_what_could_run_code_is_refused(function, tmp_path):
    path, name = tmp_path / "file", rf"({function.__module__}\.)?{function.__name__}"  # torch leaves `builtins` out
    refused = pytest.raises(DataError, match=f"file: refused, it asks for {name}, which could run code")
    for how in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
        torch.save({"a": [(1, function)]}, path, **how)
        with refused:
            files.load_tensors(path, {"builtins.range": range})
    files.save_pickle(path, {"a": function})
    with refused:
        files.load_pickle(path)

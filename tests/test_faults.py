"""What the world does to a run, of which nothing may be lost or silently different. SOAK=1: many times over."""

import collections
import contextlib
import errno
import itertools
import math
import os
import pickle
import random
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import NEVER, RICH, Tiny, epochs_until, fit, fit_long, interrupted, same_run, start

import training
from data import DataError, files
from training import Hooks, RunInUse, results, runs

resource = pytest.importorskip("resource")  # as signals, of Unix
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_core")]
KILLS, DAMAGES = (50, 1000) if os.environ.get("SOAK") else (4, 12)


@pytest.fixture(scope="module")
def rich(sets, tmp_path_factory):
    """A run that nothing happened to, and the runs' folder of one that was interrupted after three of four epochs."""
    part = tmp_path_factory.mktemp("part")
    interrupted(sets, part, 4, settings=RICH)
    return fit(sets, tmp_path_factory.mktemp("whole"), settings=RICH), part


@pytest.fixture
def part(rich, tmp_path):
    """The folder of such an interrupted run."""
    return next(shutil.copytree(rich[1], tmp_path / "runs").iterdir())


@pytest.fixture
def finish(sets, rich):
    """Goes on with the run in a folder, compares it with the undisturbed one, and returns its status."""
    return lambda folder, **options: same_run(fit(sets, folder.parent, settings=RICH, **options), rich[0]).status


def contents(folder):
    """The files of a run, without the lock's."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".lock"}


def assert_one_line(text, *parts):
    assert text.rstrip("\n").count("\n") == 0
    assert all(str(part) in text for part in parts), text


@pytest.fixture(scope="module")
def long(sets, one_core, tmp_path_factory):
    """The run of the processes, left alone."""
    return fit_long(sets, tmp_path_factory.mktemp("long"))


def test_killed_and_terminated_at_random_moments(processes, sets, long, tmp_path):
    """SIGKILL and SIGTERM in turn, at any moment of one and a half epochs, reading the files included."""
    moments, done = random.Random(2), []
    for number in range(KILLS):
        process, pipe = start(processes, sets, tmp_path / str(number // 3))
        epochs_until(0, pipe)
        process.join(moments.random() * 1.5 * min(long.history["seconds"]))
        by = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        os.kill(process.pid, by)
        process.join(60)
        assert process.exitcode == -by
        done += [(number // 3, epoch) for epoch in epochs_until(None, pipe)]
    assert done == sorted(set(done))  # no epoch that was done is done again
    for folder in tmp_path.iterdir():
        same_run(fit_long(sets, folder), long)


def die_at(number):
    """This process kills itself before it syncs or renames a file for the n-th time."""
    left = itertools.count(number, -1)
    for name in ("fsync", "replace"):
        original = partial(getattr(os, name))
        setattr(os, name, lambda *about, do=original: do(*about) if next(left) > 1 else os.kill(os.getpid(), 9))


def test_killed_while_files_get_their_names(processes, sets, long, tmp_path):
    """Before and after each renaming of the first checkpoints, the moment without checkpoint.pt included."""
    for number in range(1, 7):
        process, _ = start(processes, sets, tmp_path, partial(die_at, number))
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    assert {path.name for path in tmp_path.rglob("*.pt")} == {"previous.pt"}
    assert list(tmp_path.rglob(".*.tmp"))
    same_run(fit_long(sets, tmp_path), long)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"checkpoint.pt", "checkpoint.pt.lock"}


class NoLock(files.FileLock):
    """As on drives that have none."""

    def acquire(self, **named):
        raise OSError(errno.ENOLCK, "No locks available")


def without_locks():
    files.FileLock = NoLock


def test_two_processes_without_a_lock_do_no_harm(processes, sets, long, tmp_path):
    both = [start(processes, sets, tmp_path, without_locks) for _ in range(2)]
    assert [epochs_until(None, pipe)[-1] for _, pipe in both] == [8, 8]
    same_run(fit_long(sets, tmp_path, hooks=NEVER), long)


def test_a_second_process_stops_with_a_clear_message(processes, sets, long, tmp_path, monkeypatch):
    """Or waits a moment: for the kernel before it, which is being stopped, and whose lock ends with it."""
    process, pipe = start(processes, sets, tmp_path)
    epochs_until(1, pipe)
    os.kill(process.pid, signal.SIGSTOP)  # so that it is not finished before the second has begun
    (folder,), before = tmp_path.iterdir(), contents(*tmp_path.iterdir())
    monkeypatch.setattr(runs, "RELEASED_WITHIN", 0.2)
    with pytest.raises(RunInUse) as stopped:
        fit_long(sets, tmp_path, hooks=NEVER)
    assert_one_line(str(stopped.value), folder, "SimpleNet is being trained by another process", "run this again")
    assert stopped.value.__suppress_context__
    assert contents(folder) == before
    monkeypatch.undo()
    threading.Timer(0.3, process.kill).start()
    assert same_run(fit_long(sets, tmp_path), long).status.startswith("continued after epoch")


def test_without_a_lock_only_old_leftovers_are_removed_and_a_read_only_folder_read(part, finish, monkeypatch, capsys):
    """Leftovers of the last hour may be another process's, which is writing them now."""
    monkeypatch.setattr(files, "FileLock", NoLock)
    for name, age in ((".checkpoint.pt.1.tmp", 7200), (".checkpoint.pt.2.tmp", 60)):
        (part / name).write_bytes(b"half of it")
        os.utime(part / name, (time.time() - age,) * 2)
    finish(part)
    assert "cannot be locked here" in capsys.readouterr().out
    assert contents(part).keys() == {"checkpoint.pt", ".checkpoint.pt.2.tmp"}
    with READ_ONLY(part):
        assert finish(part, hooks=NEVER) == "loaded"
    assert capsys.readouterr().out == ""


@contextlib.contextmanager
def full_disk(folder, share):
    """No file can become longer than a share of the checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * (folder / "checkpoint.pt").stat().st_size), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def refusing(folder, mode, code, times=math.inf):
    """So often no file in the folder can be opened in this mode, renamed or removed. Rights would not stop root."""
    refused = collections.Counter()

    def refuse(original, path, *about, **named):
        key = original.__name__, path
        if folder in Path(path).parents and (original is not open or about == (mode,)) and refused[key] < times:
            refused[key] += 1
            raise OSError(code, os.strerror(code), str(path))
        return original(path, *about, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open", partial(refuse, open), raising=False)
        for name in ("replace", "unlink"):
            patch.setattr(os, name, partial(refuse, getattr(os, name)))
        yield refused


READ_ONLY = partial(refusing, mode="wb", code=errno.EROFS)
AWAY = partial(refusing, mode="rb", code=errno.EIO)  # for a moment: the run must not start anew, over the old files


@pytest.mark.parametrize(("fault", "message"), [
    (partial(full_disk, share=0.01), "cannot be written, File too large"),
    (partial(full_disk, share=0.999), "cannot be written, File too large"),
    (READ_ONLY, "cannot be written, Read-only file system"), (AWAY, "cannot be read, Input/output error"),
])  # fmt: skip
def test_an_unfinished_run_stays_as_it_is(part, finish, fault, message):
    (part / "previous.pt").replace(part / "checkpoint.pt")  # the next is as long
    before = contents(part)
    with fault(part), pytest.raises((files.SaveError, files.ReadError)) as stopped:
        finish(part)
    assert_one_line(str(stopped.value), part / "checkpoint.pt", message)
    assert contents(part) == before
    assert finish(part) == "continued after epoch 2"


def test_a_file_that_is_held_for_a_moment_ends_no_training(part, finish):
    """As a virus scanner, or OneDrive, does on Windows: every renaming and removal is refused twice."""
    (part / "checkpoint.pt").write_bytes(b"")  # so that the one before is renamed, too
    with refusing(part, None, errno.EACCES, times=2) as refused:
        assert finish(part) == "continued after epoch 2"
    assert sorted(refused.values()) == [2] * 5  # put back; kept, written; written, and the one before removed
    assert contents(part).keys() == {"checkpoint.pt"}


@pytest.mark.parametrize("case", range(DAMAGES))
def test_damage_costs_an_epoch_or_nothing_and_in_both_checkpoints_the_run(part, finish, capsys, case):
    """A range of bytes is flipped, zeroed or lost, or the file cut off; in the first cases from the beginning."""
    chance, before, there = random.Random(case), contents(part), []
    for name in ("checkpoint.pt", "previous.pt")[: 1 + case % 2]:
        begin, length = chance.randrange(len(before[name])) * (case > 1), chance.choice((1, 1, 16, 4096))
        content, lost, rest = before[name][:begin], before[name][begin : begin + length], before[name][begin + length :]
        damaged = bytes(byte ^ 1 << chance.randrange(8) for byte in lost), bytes(len(lost)), b""
        (part / name).write_bytes(content + chance.choice([*(each + rest for each in damaged), b""]))
    status = finish(part, hooks=Hooks(lambda state, step: there.append(contents(part))))
    if said := capsys.readouterr().out:
        assert_one_line(said, "Tiny: ", part / "checkpoint.pt")
    if "goes back" in said:
        assert there[0] == {"checkpoint.pt": before["previous.pt"]}  # what is damaged is never kept
    assert status == ("trained" if "starts anew" in said else f"continued after epoch {2 if said else 3}")
    assert case > 1 or ("goes back to the end of epoch 2", "starts anew")[case] in said


class Attack:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return open, ("it ran", "w")


@pytest.mark.parametrize(("kind", "name", "value", "message"), [
    *(("checkpoint", *change, "Tiny: goes back to the end of epoch 2") for change in (
        ("spec", {}), ("finished", ...), ("history", [1]), ("history/val_iou", ...), ("history/val_iou", [0.5, 0.5]),
        ("history/val_iou", ["a", "b", "c"]), ("history/val_mean", [0.5, 0.5, math.nan]), ("state/model", {}),
        ("state/optimizer", {}))),
    *(("weights", *change, "expected what save_weights writes") for change in (("source", ...), ("spec", {}))),
    *(("weights", *change, "does not fit Tiny") for change in (("settings", {"zoom": 1}), ("weights", {}))),
    *((*place, Attack(), "refused") for place in (
        ("checkpoint", "history"), ("weights", "weights/0.std"), ("histories", "Tiny/history"))),
    ("weights", "network", ["Tiny"], "expected Tiny, found"),
    ("weights", "task", {}, "expected a network of one of the tasks, found"),
    ("weights", "weights/1.2.bias", torch.full((15,), math.nan), "NaN"),
    ("weights", "weights/0.std", torch.tensor(0.0), "no standard deviation"),
    *(("histories", *change, "holds no history of Tiny") for change in (
        ("Tiny", 3), ("Tiny/more", 1), ("Tiny/settings", {"epochs": 0}))),
    ("histories", "Tiny/history", {"seconds": []}, "expected a history of"),
])  # fmt: skip
def test_a_file_of_another_shape_is_named_and_runs_no_code(
    rich, part, finish, tmp_path, monkeypatch, capsys, kind, name, value, message
):
    monkeypatch.chdir(tmp_path)
    weights, histories = Path("weights.pt"), Path("histories/localization.pkl")
    training.save_weights(rich[0].weights, weights)
    results.save_histories([rich[0]], histories)
    path, form = {"weights": (weights, "tensors"), "histories": (histories, "pickle")}.get(
        kind, (part / "checkpoint.pt", "tensors")
    )
    stored = inner = getattr(files, f"load_{form}")(path)
    *outer, last = name.split("/")
    for each in outer:
        inner = inner[each]
    inner[last] = value
    if value is ...:
        del inner[last]
    getattr(files, f"save_{form}")(path, stored)
    if kind == "checkpoint":
        finish(part)
        said = capsys.readouterr().out
    else:
        with pytest.raises(DataError) as stopped:
            training.load_weights(path, Tiny) if kind == "weights" else results.load_published(Tiny, "loc")
        said = str(stopped.value)
    assert_one_line(said, f"{path}: ", message)
    assert not Path("it ran").exists()
    pickle.loads(pickle.dumps(Attack()))
    assert Path("it ran").exists(), "else this test would show nothing"

"""What the world does to a run: kills it, fills its disk, damages its files, gives it files made to do harm.

Nothing may be lost or silently different. With the environment variable SOAK=1 all of it many times over.
"""

import contextlib
import errno
import math
import os
import random
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import LONG, NEVER, RICH, Tiny, assert_same_run, fit, fit_stored, interrupted, start, wait_for

import training
from data import DataError, files
from training import RunInUse, results, runs

resource = pytest.importorskip("resource")  # as signals, of Unix
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_core")]

SOAK = bool(os.environ.get("SOAK"))
KILLS = 50 if SOAK else 6
DAMAGES = 1000 if SOAK else 100


@pytest.fixture(scope="module")
def undisturbed(sets, tmp_path_factory):
    return fit(sets, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def rich(sets, tmp_path_factory):
    """A run that nothing happened to, and the runs' folder of one that was interrupted after three of four epochs."""
    part = tmp_path_factory.mktemp("part")
    interrupted(sets, part, 4, settings=RICH)
    return fit(sets, tmp_path_factory.mktemp("whole"), settings=RICH), part


@pytest.fixture(scope="module")
def killing_ground(sets, processes, tmp_path_factory):
    """The data as a file, and the run of a process that was left alone."""
    folder = tmp_path_factory.mktemp("killed")
    splits, _ = sets["loc"]
    torch.save([[part.images, part.labels] for part in (splits.train, splits.val, splits.test)], folder / "splits")
    process, pipe = start(processes, folder / "splits", folder / "runs")
    assert wait_for("finished", pipe) == ["started", *range(1, LONG.epochs + 1), "finished"]
    process.join(60)
    return folder / "splits", fit_stored(folder / "splits", folder / "runs", NEVER)


def assert_finishes(processes, killing_ground, folder):
    """Left alone, the run comes to its end, the same as if it had been left alone from the beginning."""
    stored, expected = killing_ground
    process, pipe = start(processes, stored, folder)
    assert wait_for("finished", pipe)[-1] == "finished"
    process.join(60)
    assert_same_run(fit_stored(stored, folder, NEVER), expected)
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"checkpoint.pt", ".lock"}


def contents(folder):
    """The files of a run, without the lock's."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def assert_one_line(text, *parts):
    assert text.rstrip("\n").count("\n") == 0
    assert all(str(part) in text for part in parts), text


def test_killed_and_terminated_at_random_moments(processes, killing_ground, tmp_path):
    """SIGKILL and SIGTERM in turn, at any moment of the first one and a half epochs, reading the files included."""
    stored, expected = killing_ground
    moments, seconds = random.Random(2), min(expected.history["seconds"])
    reached, number = [], 0
    while len(reached) < KILLS:
        process, pipe = start(processes, stored, tmp_path / str(number))
        messages = wait_for("started", pipe)
        process.join(moments.random() * 1.5 * seconds)
        by = (signal.SIGKILL, signal.SIGTERM)[len(reached) % 2]
        os.kill(process.pid, by)
        process.join(60)
        messages += wait_for("finished", pipe)
        if messages[-1] == "finished":  # this run has come to its end in spite of it
            assert_same_run(fit_stored(stored, tmp_path / str(number), NEVER), expected)
            number += 1
        else:
            assert process.exitcode == -by
            reached.append((number, *messages[1:]))
    epochs = [(where, epoch) for where, *all_epochs in reached for epoch in all_epochs]
    assert epochs == sorted(set(epochs))  # no epoch that was done is done again
    assert_finishes(processes, killing_ground, tmp_path / str(number))


def die_at(number, after):
    """This process kills itself before or after a file gets its final name for the n-th time."""
    original, numbers = os.replace, iter(range(1, 1_000_000))

    def replace_and_die(source, target):
        fatal = next(numbers) == number
        if after or not fatal:
            original(source, target)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die


def test_killed_while_files_get_their_names(processes, killing_ground, tmp_path):
    """Before and after each renaming of the first checkpoints, the moment without checkpoint.pt included."""
    for number, after, left in ((1, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1), (1, 0, 1), (2, 0, 1), (2, 1, 0)):
        process, _ = start(processes, killing_ground[0], tmp_path, partial(die_at, number, after))
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert len(list(tmp_path.rglob(".*.tmp"))) == left  # behind, and must not matter
    assert_finishes(processes, killing_ground, tmp_path)


def test_two_who_write_a_file_at_once_both_write_it_whole(tmp_path):
    path = tmp_path / "file"

    def write(file):
        file.write(b"A" * 10)
        files.atomic_write(path, lambda other: other.write(b"B" * 30))
        assert path.read_bytes() == b"B" * 30
        file.write(b"A" * 10)

    files.atomic_write(path, write)
    assert path.read_bytes() == b"A" * 20


class NoLock(files.FileLock):
    """As on drives that have none."""

    def acquire(self, **named):
        raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("locked", [True, False])
def test_leftovers_of_killed_processes_are_removed(sets, undisturbed, tmp_path, monkeypatch, capsys, locked):
    """Without a lock only old ones: those of the last hour may be another process's, which is writing them now."""
    if not locked:
        monkeypatch.setattr(files, "FileLock", NoLock)
    folder = interrupted(sets, tmp_path, 3)
    for name, age in ((".checkpoint.pt.1.tmp", 7200), (".checkpoint.pt.2.tmp", 60)):
        (folder / name).write_bytes(b"half of it")
        os.utime(folder / name, (time.time() - age,) * 2)
    (folder / "notes.tmp").write_text("somebody's own", encoding="utf-8")
    capsys.readouterr()
    assert_same_run(fit(sets, tmp_path), undisturbed)
    said = capsys.readouterr().out
    assert said == "" if locked else "cannot be locked here" in said
    left = {path.name for path in folder.iterdir()} - {".lock", "checkpoint.pt"}
    assert left == ({"notes.tmp"} if locked else {"notes.tmp", ".checkpoint.pt.2.tmp"})


def test_a_second_process_stops_with_a_clear_message(processes, killing_ground, tmp_path, monkeypatch):
    """Or waits a moment: for the kernel before it, which is being stopped, and whose lock ends with it."""
    stored, expected = killing_ground
    process, pipe = start(processes, stored, tmp_path)
    wait_for(1, pipe)
    os.kill(process.pid, signal.SIGSTOP)  # so that it is not finished before the second has begun
    killing = threading.Timer(0.3, process.kill)
    try:
        folder = next(tmp_path.iterdir())
        before = contents(folder)
        monkeypatch.setattr(runs, "RELEASED_WITHIN", 0.2)
        with pytest.raises(RunInUse) as stopped:
            fit_stored(stored, tmp_path, NEVER)
        assert_one_line(str(stopped.value), folder, "SimpleNet is being trained by another process", "run this again")
        assert stopped.value.__suppress_context__
        assert contents(folder) == before
    finally:
        killing.start()
    monkeypatch.undo()
    run = fit_stored(stored, tmp_path)
    assert run.status.startswith("continued after epoch")
    assert_same_run(run, expected)


def without_locks():
    files.FileLock = NoLock


def test_two_processes_without_a_lock_do_no_harm(processes, killing_ground, tmp_path):
    stored, expected = killing_ground
    both = [start(processes, stored, tmp_path, without_locks) for _ in range(2)]
    assert [wait_for("finished", pipe)[-1] for _, pipe in both] == ["finished", "finished"]
    assert_same_run(fit_stored(stored, tmp_path, NEVER), expected)


@contextlib.contextmanager
def full_disk(folder, share):
    """No file can become longer than a share of the checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = int(share * (folder / "checkpoint.pt").stat().st_size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def refusing(folder, modes, error):
    """Files in the folder cannot be opened in these modes, nor renamed or removed. Rights would not stop root."""

    def refuse(path, mode="w", **named):
        if folder in Path(path).parents and mode in modes:
            raise OSError(*error, str(path))
        return open(path, mode, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open", refuse, raising=False)
        patch.setattr(files, "FileLock", NoLock)
        for name in ("replace", "unlink"):
            patch.setattr(os, name, lambda path, *target: refuse(path, modes[0]))
        yield


read_only = partial(refusing, modes=("wb",), error=(errno.EROFS, "Read-only file system"))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (partial(full_disk, share=0.01), files.SaveError, "cannot be written, File too large"),
        (partial(full_disk, share=0.999), files.SaveError, "cannot be written, File too large"),
        (read_only, files.SaveError, "cannot be written, Read-only file system"),
        # A run must not start anew, over the old files, because they could not be read for a moment.
        (partial(refusing, modes=("rb",), error=(errno.EIO, "No drive")), files.ReadError, "cannot be read, No drive"),
    ],
)
def test_an_unfinished_run_stays_as_it_is(sets, undisturbed, tmp_path, fault, error, message):
    folder = interrupted(sets, tmp_path, 3)
    before = contents(folder)
    with fault(folder), pytest.raises(error) as stopped:
        fit(sets, tmp_path)
    assert_one_line(str(stopped.value), folder / "checkpoint.pt", message)
    assert contents(folder) == before
    run = fit(sets, tmp_path)
    assert run.status == "continued after epoch 2"
    assert_same_run(run, undisturbed)


def test_a_finished_run_is_loaded_from_a_read_only_folder(sets, tmp_path, capsys):
    run = fit(sets, tmp_path)
    before = contents(run.weights.parent)
    capsys.readouterr()
    with read_only(run.weights.parent):
        loaded = fit(sets, tmp_path, hooks=NEVER)
    assert loaded.status == "loaded"
    assert_same_run(loaded, run)
    assert contents(run.weights.parent) == before
    assert capsys.readouterr().out == ""


def damaged(content, chance):
    """A file's bytes with a range of them flipped, zeroed, drawn anew or lost, or the file cut off."""
    begin, length = chance.randrange(len(content)), chance.choice((1, 1, 1, 2, 16, 4096))
    part, rest = content[begin : begin + length], content[begin + length :]
    flipped = bytes([part[0] ^ 1 << chance.randrange(8)]) + part[1:]
    others = [other + rest for other in (flipped, flipped, bytes(len(part)), chance.randbytes(len(part)), b"")]
    return content[:begin] + chance.choice([*others, b""])


@pytest.mark.parametrize("kind", ["unfinished", "finished"])
def test_damage_is_found_or_harmless(sets, rich, tmp_path, capsys, kind):
    """The run always ends as the undisturbed one did; where a file was lost it says so in one line that names it."""
    whole, part = rich
    source = whole.weights.parent.parent if kind == "finished" else part
    expected = "loaded" if kind == "finished" else "continued after epoch 3"
    chance, losses = random.Random(3), 0
    for case in range(DAMAGES // 2):
        folder = shutil.copytree(source, tmp_path / str(case))
        path = chance.choice(sorted(folder.rglob("*.pt")))
        path.write_bytes(damaged(path.read_bytes(), chance))
        capsys.readouterr()
        run = fit(sets, folder, settings=RICH)
        said = capsys.readouterr().out
        if said:
            assert_one_line(said, "Tiny: ", path)
            losses += 1
        assert run.status == ("trained" if "anew" in said else "continued after epoch 2" if said else expected)
        assert_same_run(run, whole)
        shutil.rmtree(folder)
    assert losses > DAMAGES / 10  # else the damage did not reach what is read


def test_a_damaged_checkpoint_costs_one_epoch_and_two_cost_the_run(sets, undisturbed, tmp_path, capsys):
    folder = interrupted(sets, tmp_path, 4)
    before = contents(folder)
    (folder / "checkpoint.pt").write_bytes(b"")
    capsys.readouterr()
    interrupted(sets, tmp_path, 3)
    said = capsys.readouterr().out
    assert_one_line(said, "Tiny: goes back to the end of epoch 2, ", folder / "checkpoint.pt", "damaged")
    assert contents(folder) == {"checkpoint.pt": before["previous.pt"]}  # what is damaged is never kept
    run = fit(sets, tmp_path)
    assert run.status == "continued after epoch 2"
    assert_same_run(run, undisturbed)
    for name, content in before.items():
        (folder / name).write_bytes(content[:-100])
    run = fit(sets, tmp_path)
    assert_one_line(capsys.readouterr().out, "Tiny: starts anew", folder / "checkpoint.pt")
    assert run.status == "trained"
    assert_same_run(run, undisturbed)


WRONG = {
    "something more": lambda stored: stored.update(more=1),
    "another run's": lambda stored: stored.update(settings={}),
    "a column more": lambda stored: stored["history"].update(val_ious=[0.5, 0.5, 0.5]),
    "a shorter column": lambda stored: stored["history"]["val_iou"].pop(),
    "a history of text": lambda stored: stored["history"].update(val_iou=["a", "b", "c"]),
    "a watched epoch less": lambda stored: stored["watched"].pop(),
    "no watched epochs": lambda stored: stored.update(watched=None),
    "a watched number": lambda stored: stored.update(watched=3),
    "NaN in the history": lambda stored: stored["history"].update(val_mean=[0.5, 0.5, math.nan]),
    "no weights": lambda stored: stored["state"]["model"].clear(),
    "no optimizer": lambda stored: stored["state"]["optimizer"].clear(),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_checkpoint_of_another_build_is_damage(sets, rich, tmp_path, capsys, what):
    whole, part = rich
    path = next(shutil.copytree(part, tmp_path / "runs").rglob("checkpoint.pt"))
    stored = files.load_tensors(path)
    WRONG[what](stored)
    files.save_tensors(path, stored)
    capsys.readouterr()
    run = fit(sets, tmp_path / "runs", settings=RICH)
    assert_one_line(capsys.readouterr().out, "Tiny: goes back to the end of epoch 2", path)
    assert_same_run(run, whole)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("place", [None, "history", "weights", "trained_on"])
def test_files_that_would_run_code(sets, rich, tmp_path, monkeypatch, capsys, place):
    """Checkpoints, weights and histories: none runs code, each is named, and the run ends as if undisturbed."""
    monkeypatch.chdir(tmp_path)
    whole, part = rich
    attack, weights, histories = Attack(tmp_path / "it ran"), Path("weights.pt"), Path("histories/localization.pkl")
    folder = next(shutil.copytree(part, tmp_path / "runs").iterdir())
    training.save_weights(whole.weights, weights)
    for path in (folder / "checkpoint.pt", folder / "previous.pt", weights):
        torch.save(files.load_tensors(path) | {place: attack} if place else attack, path)
    files.save_pickle(histories, {"Tiny": {place: attack}} if place else attack)
    capsys.readouterr()
    assert_same_run(fit(sets, tmp_path / "runs", settings=RICH), whole)
    assert_one_line(capsys.readouterr().out, "Tiny: starts anew", folder / "checkpoint.pt", "refused")
    with pytest.raises(DataError, match=r"weights\.pt: refused"):
        training.load_weights(weights, Tiny)
    with pytest.raises(DataError, match=r"localization\.pkl: refused"):
        results.load_published(Tiny, "loc")
    assert not Path("it ran").exists()
    torch.load(weights, weights_only=False)
    assert Path("it ran").exists(), "else this test would show nothing"

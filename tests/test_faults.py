"""What the world does to a run, of which nothing may be lost or silently different."""

import contextlib
import errno
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import NEVER, RICH, SHORT, Tiny, contents, fit, interrupted, same_run

import models
import training
from data import DataError, files
from training import Hooks, RunInUse, results, runs

resource = pytest.importorskip("resource")  # as signals, of Unix
pytestmark = pytest.mark.usefixtures("one_core")
# New processes come from one that has imported PyTorch and done nothing else: quick, and safe to fork.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["training", "pytest"])
fit_long = partial(fit, settings=replace(SHORT, epochs=8, batch_size=8), network=models.SimpleNet)  # for killing in


@pytest.fixture(scope="module")
def rich(sets, tmp_path_factory):
    """A run that nothing happened to."""
    return fit(sets, tmp_path_factory.mktemp("whole"), settings=RICH)


@pytest.fixture(scope="module")
def long(sets, one_core, tmp_path_factory):
    """The run of the processes, left alone."""
    return fit_long(sets, tmp_path_factory.mktemp("long"))


@pytest.fixture
def part(sets, tmp_path):
    """The folder of the same run, interrupted after three of four epochs."""
    return interrupted(sets, tmp_path / "runs", 4, settings=RICH)


@pytest.fixture
def finish(sets, rich, part):
    """Goes on with it, compares it with the undisturbed run, and returns its status."""
    return lambda **options: same_run(fit(sets, part.parent, settings=RICH, **options), rich).status


def _train(sets, folder, pipe, prepare):
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    prepare()
    fit_long(sets, folder, hooks=Hooks(on_epoch=lambda state: pipe.send(state.epoch)))


def start(sets, folder, prepare=int):
    """A process that calls `prepare`, trains the run, and tells a pipe every epoch that is done."""
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=_train, args=(sets, folder, there, prepare), daemon=True)
    process.start()
    there.close()  # else a killed process would not close the pipe
    return process, here


def die_at(number, by):
    """This process ends itself by a signal before it syncs or renames a file for the n-th time."""
    left = itertools.count(number, -1)
    for name in ("fsync", "replace"):
        original = partial(getattr(os, name))
        setattr(os, name, lambda *about, do=original: do(*about) if next(left) > 1 else os.kill(os.getpid(), by))


def test_killed_and_terminated_at_any_moment(sets, long, tmp_path):
    """Before and after each renaming of the first checkpoints, the moment without checkpoint.pt included."""
    for number in range(1, 7):
        by = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        process, _ = start(sets, tmp_path, partial(die_at, number, by))
        process.join(60)
        assert process.exitcode == -by
    assert {path.name for path in tmp_path.rglob("*.pt")} == {"previous.pt"}
    young, *old = tmp_path.rglob(".*.tmp")
    for path, hours in zip(old, itertools.cycle((2, -2))):  # of the future, too: clocks may be wrong
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    same_run(fit_long(sets, tmp_path), long)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}  # of younger ones it is not known
    assert (left, len(old) > 1) == ({"checkpoint.pt", "checkpoint.pt.lock", young.name}, True)


def test_a_second_process_stops_or_waits_for_one_that_is_being_killed(sets, long, tmp_path, monkeypatch):
    process, pipe = start(sets, tmp_path)
    assert (pipe.poll(120), pipe.recv()) == (True, 1)
    os.kill(process.pid, signal.SIGSTOP)  # so that it is not finished before the second has begun
    (folder,), before = tmp_path.iterdir(), contents(*tmp_path.iterdir())
    monkeypatch.setattr(runs, "RELEASED_WITHIN", 0.2)
    with pytest.raises(RunInUse, match=rf"^{folder}/checkpoint.pt: held by another process.*$"):
        fit_long(sets, tmp_path, hooks=NEVER)
    assert contents(folder) == before
    monkeypatch.undo()
    threading.Timer(0.3, process.kill).start()
    assert same_run(fit_long(sets, tmp_path), long).status.startswith("continued after epoch")


@contextlib.contextmanager
def full_disk(folder):
    """Every file stays a little shorter than the checkpoint."""
    limit, before = resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(limit, ((folder / "checkpoint.pt").stat().st_size - 9, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


@contextlib.contextmanager
def refusing(folder, mode, code):
    """No file in the folder can be opened in this mode, renamed or removed. Rights would not stop root."""

    def refuse(original, path, *about):
        if folder in Path(path).parents and (original is not open or about == (mode,)):
            raise OSError(code, os.strerror(code))
        return original(path, *about)

    with pytest.MonkeyPatch.context() as patch:
        for owner, original in ((files, open), (os, os.replace), (os, os.unlink)):
            patch.setattr(owner, original.__name__, partial(refuse, original), raising=False)
        yield


READ_ONLY = partial(refusing, mode="wb", code=errno.EROFS)
AWAY = partial(refusing, mode="rb", code=errno.EIO)  # for a moment: the run must not start anew, over the old files


@pytest.mark.parametrize(("fault", "message"), [
    (full_disk, "cannot be written, File too large"),
    (READ_ONLY, "cannot be written, Read-only file system"), (AWAY, "cannot be read, Input/output error"),
])  # fmt: skip
def test_an_unfinished_run_stays_as_it_is(part, finish, fault, message):
    (part / "previous.pt").replace(part / "checkpoint.pt")  # the next is as long
    before = contents(part)
    with fault(part), pytest.raises((files.SaveError, files.ReadError), match=f"^{part}/checkpoint.pt: {message}$"):
        finish()
    assert contents(part) == before
    assert finish() == "continued after epoch 2"


def test_a_run_needs_no_lock_and_a_finished_one_no_right_to_write(part, finish, monkeypatch):
    without_locks = Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented"))  # as some drives are
    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", without_locks)
    finish()
    without_locks.assert_called()
    with READ_ONLY(part):
        assert finish(hooks=NEVER) == "loaded"


@pytest.mark.parametrize("case", range(4))
def test_damage_costs_an_epoch_or_nothing_and_in_both_checkpoints_the_run(part, finish, capsys, case):
    """A bit is flipped, or the file cut off."""
    chance = random.Random(case)
    for name in ("checkpoint.pt", "previous.pt")[: 1 + case % 2]:
        content = bytearray((part / name).read_bytes())
        at = chance.randrange(len(content))
        content[at] ^= 1 << chance.randrange(8)
        (part / name).write_bytes(content[:at] if case < 2 else content)
    status, said = finish(), capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"Tiny: goes back to what was saved before, if anything was: {part}") for line in said)
    assert status == ("continued after epoch 3", "continued after epoch 2", "trained")[len(said)]
    assert case > 1 or len(said) == 1 + case


class Attack:
    def __reduce__(self):
        return open, ("it ran", "w")  # when it is unpickled


@pytest.mark.parametrize(("name", "change", "message"), [
    ("checkpoint.pt", {"history": Attack()}, "Tiny: goes back to what was saved before"),
    ("weights.pt", {"weights": Attack()}, "refused"), ("histories/localization.pkl", {"Tiny": Attack()}, "refused"),
    ("weights.pt", {"settings": {"zoom": 1}}, "expected what save_weights writes for Tiny, found"),
    ("weights.pt", {"weights": {}}, "expected what save_weights writes for Tiny, found"),
    ("histories/localization.pkl", {"Tiny": {"settings": {}}}, "holds no history of Tiny"),
])  # fmt: skip
def test_a_wrong_file_is_named_and_runs_no_code(rich, part, finish, monkeypatch, capsys, name, change, message):
    monkeypatch.chdir(part)
    training.save_weights(rich.weights, Path("weights.pt"))
    results.save_histories([rich], Path("histories/localization.pkl"))
    form = "pickle" if name.endswith(".pkl") else "tensors"
    getattr(files, f"save_{form}")(Path(name), getattr(files, f"load_{form}")(Path(name)) | change)
    use = {"checkpoint.pt": finish, "weights.pt": lambda: training.load_weights("weights.pt", Tiny)}
    try:
        assert use.get(name, lambda: results.load_published(Tiny, "loc"))() == "continued after epoch 2"
    except DataError as stopped:
        print(stopped)
    said = capsys.readouterr().out
    assert (said.count("\n"), f"{name}: " in said, message in said) == (1, True, True)
    assert not Path("it ran").exists()
    pickle.loads(pickle.dumps(Attack()))
    assert Path("it ran").exists(), "else this test would show nothing"

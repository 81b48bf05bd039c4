"""What the world does to a program: kills it, fills its disk, damages its files, gives it files made to do harm.

Nothing may be lost or silently different. With the environment variable SOAK=1 all of it many times over.
"""

import contextlib
import errno
import gc
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    LONG,
    SHORT,
    Tiny,
    assert_same_run,
    finished_run,
    fit,
    in_train_epoch,
    interrupt_at,
    never,
    start,
    wait_for,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.utils.data import TensorDataset

import data
import models
import training
import utils
from data import DataError, files, labels, sources
from data.files import ReadError, SaveError, load_pickle, load_tensors, save_pickle
from scripts.bench import peak_memory, resident
from training import NonFiniteLoss, RunInUse

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "on_the_cpu")]

SOAK = bool(os.environ.get("SOAK"))
KILLS = 50 if SOAK else 6
DAMAGES = 1000 if SOAK else 100
EXAMPLES = 2000 if SOAK else 60
FIGURES = 200 if SOAK else 3

# Everything that a run can hold: the optimizer's two means of every weight, a schedule, and averaged weights.
RICH = replace(SHORT, optimizer="adamw", learning_rate=3e-3, momentum=0.0, one_cycle=True, averaging=0.9, shift=4)


DESCRIBED = {}


@pytest.fixture(scope="module", autouse=True)
def code_is_read_once():
    """Reading the code that a run is recognized by takes ten times as long as training does here."""
    original = training.describe_run

    def describe(network, splits, normal, settings):
        key = network, splits.fingerprint, normal, settings
        if key not in DESCRIBED:
            DESCRIBED[key] = original(network, splits, normal, settings)
        return DESCRIBED[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "describe_run", describe)
        yield


@pytest.fixture(scope="module")
def rich(sets, tmp_path_factory):
    """A run that nothing happened to, and the folder of one that was interrupted after three of its four epochs."""
    whole = fit(sets, tmp_path_factory.mktemp("whole"), settings=RICH)
    runs = tmp_path_factory.mktemp("part")
    interrupted(sets, runs, 4, RICH)
    return whole, runs


def interrupted(sets, runs, epoch, settings=SHORT):
    """A run that was stopped at the beginning of an epoch; returns its folder."""
    with pytest.MonkeyPatch.context() as patch:
        in_train_epoch(patch, before=interrupt_at(epoch))
        with pytest.raises(KeyboardInterrupt):
            fit(sets, runs, settings=settings)
    return next(runs.iterdir())


@pytest.fixture(scope="module")
def undisturbed(sets, tmp_path_factory):
    return fit(sets, tmp_path_factory.mktemp("undisturbed"))


def contents(folder):
    """The files of a run, without the lock's."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def assert_one_line(text, *parts):
    assert text.count("\n") == (1 if text.endswith("\n") else 0)
    assert all(part in text for part in parts), text


# ---------------------------------------------------------------------------------------------- killed


def test_killed_and_terminated_at_random_moments(processes, killing_ground, tmp_path):
    """SIGKILL and SIGTERM in turn, at any moment of the first one and a half epochs, reading the files included."""
    stored, expected = killing_ground
    moments, seconds = random.Random(2), min(expected.history["seconds"])
    killed = finished = 0
    while killed < KILLS:
        process, pipe = start(processes, stored, tmp_path / str(finished))
        wait_for("started", pipe)
        process.join(moments.random() * 1.5 * seconds)
        if process.is_alive():
            number = (signal.SIGKILL, signal.SIGTERM)[killed % 2]
            os.kill(process.pid, number)
        process.join(60)
        if process.exitcode == 0:  # this run has come to its end in spite of it
            assert_same_run(finished_run(stored, tmp_path / str(finished)), expected)
            finished += 1
        else:
            assert process.exitcode == -number
            killed += 1
    process, pipe = start(processes, stored, tmp_path / str(finished))
    assert wait_for("finished", pipe)[-1] == "finished"
    process.join(60)
    assert_same_run(finished_run(stored, tmp_path / str(finished)), expected)
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.parametrize("number", range(1, 5))
def test_killed_between_the_names_of_a_checkpoint(sets, undisturbed, tmp_path, monkeypatch, number):
    """As if the process had been killed after each renaming in the saving of epoch 3, which includes the moment when
    there is no last.pt but the one before it."""
    folder = interrupted(sets, tmp_path, 3)
    original, renamed = os.replace, []

    def stop_after(source, target):
        original(source, target)
        renamed.append(Path(target).name)
        if len(renamed) == number + 1:  # the first is history.pkl, written again
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_after)
        with pytest.raises(KeyboardInterrupt):
            fit(sets, tmp_path)
    assert (folder / "last.pt").exists() != (renamed[-1] == "previous.pt")
    assert_same_run(fit(sets, tmp_path), undisturbed)


def test_leftovers_of_killed_processes_are_removed(sets, undisturbed, tmp_path):
    folder = interrupted(sets, tmp_path, 3)
    for name in (".last.pt.1.tmp", f".best-001.pt.{os.getpid()}.tmp", ".history.pkl.999999999.tmp"):
        (folder / name).write_bytes(b"half of it")
    (folder / "notes.tmp").write_text("somebody's own")
    assert_same_run(fit(sets, tmp_path), undisturbed)
    assert [path.name for path in folder.rglob("*.tmp")] == ["notes.tmp"]


def test_without_a_lock_only_old_leftovers_are_removed(sets, tmp_path, monkeypatch):
    """Those of the last hour may be another process's, which is writing them now."""
    monkeypatch.setattr(files, "fcntl", None)
    folder = interrupted(sets, tmp_path, 3)
    for name, age in ((".last.pt.1.tmp", 7200), (".last.pt.2.tmp", 60)):
        (folder / name).write_bytes(b"half of it")
        os.utime(folder / name, (time.time() - age,) * 2)
    fit(sets, tmp_path)
    assert [path.name for path in folder.rglob("*.tmp")] == [".last.pt.2.tmp"]


# ---------------------------------------------------------------------------------------------- two at once


def test_a_second_process_stops_with_a_clear_message(sets, processes, killing_ground, tmp_path, monkeypatch):
    stored, expected = killing_ground
    splits = data.Splits(*(data.Split(*part) for part in load_tensors(stored)), "loc", "digits")
    normal = utils.Normalizer.fit(splits.train.pictures)

    def second():
        return training.fit(models.SimpleNet, splits, normal, "loc", LONG, tmp_path, CPU)

    process, pipe = start(processes, stored, tmp_path)
    wait_for(1, pipe)
    os.kill(process.pid, signal.SIGSTOP)  # so that it is not finished before the second has begun
    try:
        before = contents(next(tmp_path.iterdir()))
        monkeypatch.setattr(training, "RELEASED_WITHIN", 0.3)
        with pytest.raises(RunInUse) as stopped:
            second()
        message = str(stopped.value)
        assert_one_line(
            message, str(tmp_path), "SimpleNet", f"process {process.pid} on ", "stop it, then run this again"
        )
        assert stopped.value.__suppress_context__
        assert contents(next(tmp_path.iterdir())) == before
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert wait_for("finished", pipe)[-1] == "finished"
    process.join(60)
    monkeypatch.undo()
    assert second().how == "loaded"
    assert_same_run(finished_run(stored, tmp_path), expected)


def test_a_kernel_that_is_restarted_waits_for_the_one_before(sets, undisturbed, tmp_path, monkeypatch):
    """The lock is held when the second asks, and free a moment later."""
    folder = interrupted(sets, tmp_path, 3)
    monkeypatch.setattr(training, "RELEASED_WITHIN", 60.0)
    with contextlib.ExitStack() as first:
        assert first.enter_context(files.lock(folder / ".lock"))
        monkeypatch.setattr(files.time, "sleep", lambda seconds: first.close())
        run = fit(sets, tmp_path)
    assert run.how == "continued after epoch 2"
    assert_same_run(run, undisturbed)


def test_a_lock_ends_with_its_block_and_is_no_lock_for_others(tmp_path):
    path = tmp_path / "folder" / ".lock"
    with pytest.raises(ZeroDivisionError), files.lock(path):
        raise ZeroDivisionError
    with files.lock(path) as alone:
        assert alone
        with pytest.raises(files.InUse, match=rf"^process {os.getpid()} on .+$"), files.lock(path):
            pytest.fail("two have it")
        with files.lock(tmp_path / "other") as other:
            assert other


def no_flock(file, how):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("lacking", ["module", "support"])
def test_where_there_are_no_locks_it_is_said(sets, undisturbed, tmp_path, monkeypatch, capsys, lacking):
    if lacking == "module":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", no_flock)
    capsys.readouterr()
    run = fit(sets, tmp_path)
    assert_one_line(capsys.readouterr().out, str(run.folder), "cannot be locked here")
    assert_same_run(run, undisturbed)
    assert fit(sets, tmp_path).how == "loaded"
    assert capsys.readouterr().out == ""


def train_without_a_lock(stored, runs):
    torch.set_num_threads(1)
    files.fcntl = None
    splits = data.Splits(*(data.Split(*part) for part in load_tensors(stored)), "loc", "digits")
    training.fit(models.SimpleNet, splits, utils.Normalizer.fit(splits.train.pictures), "loc", LONG, runs, CPU)


def test_two_processes_without_a_lock_do_no_harm(processes, killing_ground, tmp_path):
    stored, expected = killing_ground
    both = [processes.Process(target=train_without_a_lock, args=(stored, tmp_path), daemon=True) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    assert_same_run(finished_run(stored, tmp_path), expected)


# ---------------------------------------------------------------------------------------------- nowhere to write


@contextlib.contextmanager
def largest_file(size):
    """No file can become longer than so many bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9, 0.999] if not SOAK else np.linspace(0.01, 0.9999, 50).tolist())
def test_a_full_disk_stops_the_run_and_loses_nothing(sets, undisturbed, tmp_path, share):
    """Full at different places of history.pkl, of the best weights, of last.pt."""
    folder = interrupted(sets, tmp_path, 3)
    before = contents(folder)
    with largest_file(int(share * len(before["last.pt"]))), pytest.raises(SaveError) as stopped:
        fit(sets, tmp_path)
    assert_one_line(str(stopped.value), str(folder), "cannot be written, File too large")
    after = contents(folder)
    assert [name for name in after if name.endswith(".tmp")] == []
    assert (after["last.pt"], after["previous.pt"]) == (before["last.pt"], before["previous.pt"])
    run = fit(sets, tmp_path)
    assert run.how == "continued after epoch 2"
    assert_same_run(run, undisturbed)


@pytest.fixture
def read_only(monkeypatch):
    """Makes a folder read-only, for root too, whom rights do not stop."""

    def read_only(folder):
        original = open

        def refuse(path, *more, **named):
            if folder in Path(path).parents:
                raise OSError(errno.EROFS, "Read-only file system", str(path))

        def open_to_read(path, mode="r", **named):
            if set(mode) & set("wa+x"):
                refuse(path)
            return original(path, mode, **named)

        monkeypatch.setattr(files, "open", open_to_read, raising=False)
        for name in ("replace", "unlink", "mkdir"):
            monkeypatch.setattr(os, name, refuse)
        if os.geteuid():
            folder.chmod(0o500)

    return read_only


@pytest.mark.parametrize("history", ["there", "missing", "damaged"])
def test_a_finished_run_is_loaded_from_a_read_only_folder(sets, undisturbed, tmp_path, read_only, capsys, history):
    folder = fit(sets, tmp_path).folder
    path = folder / "history.pkl"
    if history != "there":
        path.write_bytes(path.read_bytes()[:-1]) if history == "damaged" else path.unlink()
    before = contents(folder)
    capsys.readouterr()
    read_only(folder)
    run = fit(sets, tmp_path)
    assert run.how == "loaded"
    assert_same_run(run, undisturbed)
    assert contents(folder) == before
    assert capsys.readouterr().out == ""


def test_a_read_only_folder_is_noticed_before_training(sets, tmp_path, read_only, monkeypatch):
    folder = interrupted(sets, tmp_path, 3)
    before = contents(folder)
    read_only(folder)
    in_train_epoch(monkeypatch, before=never)
    with pytest.raises(SaveError) as stopped:
        fit(sets, tmp_path)
    assert_one_line(str(stopped.value), str(folder), "cannot be written, Read-only file system")
    assert contents(folder) == before


def test_a_folder_that_cannot_be_made_is_noticed_before_training(sets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    in_train_epoch(monkeypatch, before=never)
    with pytest.raises(SaveError) as stopped:
        fit(sets, tmp_path / "file")
    assert_one_line(str(stopped.value), str(tmp_path / "file"), "cannot be written, ")


def test_a_drive_that_is_away_is_no_damage(sets, undisturbed, tmp_path, monkeypatch):
    """A run must not start anew, over the old files, because they could not be read for a moment."""
    folder = interrupted(sets, tmp_path, 3)
    before = contents(folder)

    def away(path, mode="r", **named):
        if Path(path).name == "last.pt":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return open(path, mode, **named)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", away, raising=False)
        with pytest.raises(ReadError) as stopped:
            fit(sets, tmp_path)
    assert_one_line(str(stopped.value), str(folder / "last.pt"), "cannot be read, Input/output error")
    assert contents(folder) == before
    assert_same_run(fit(sets, tmp_path), undisturbed)


# ---------------------------------------------------------------------------------------------- damage


def damaged(content, chance):
    """A file's bytes with a range of them lost, zeroed or flipped, or the file cut off; and what was done."""
    begin = chance.randrange(len(content))
    length = min(chance.choice((1, 1, 1, 2, 16, 4096)), len(content) - begin)
    how = chance.choice(("flipped", "flipped", "inverted", "zeroed", "noise", "truncated", "lost"))
    part = content[begin : begin + length]
    if how == "flipped":
        part = bytes([part[0] ^ 1 << chance.randrange(8)]) + part[1:]
    elif how == "inverted":
        part = bytes(byte ^ 0xFF for byte in part)
    elif how == "zeroed":
        part = bytes(length)
    elif how == "noise":
        part = chance.randbytes(length)
    elif how == "lost":
        part = b""
    rest = b"" if how == "truncated" else content[begin + length :]
    return content[:begin] + (b"" if how == "truncated" else part) + rest, f"{how}, {length} bytes from {begin}"


@pytest.mark.parametrize("kind", ["unfinished", "finished"])
def test_damage_is_found_or_harmless(sets, rich, tmp_path, capsys, kind):
    """The run always ends as the undisturbed one did, in its history, its weights and history.pkl; where a file was
    lost it says so in one line that names the file. A few epochs are trained again then, never silently."""
    whole, part = rich
    source = whole.folder.parent if kind == "finished" else part
    chance, losses = random.Random(3), 0
    for case in range(DAMAGES // 2):
        runs = tmp_path / str(case)
        shutil.copytree(source, runs)
        folder = next(runs.iterdir())
        path = chance.choice([path for path in sorted(folder.iterdir()) if path.suffix in (".pt", ".pkl")])
        content, what = damaged(path.read_bytes(), chance)
        changed = content != path.read_bytes()
        path.write_bytes(content)
        what = f"{path.name}: {what}"
        if path.name == "history.pkl":
            try:
                read = load_pickle(path)
            except DataError as error:
                assert_one_line(str(error), str(path))
            else:
                assert not changed, what
                assert read
        capsys.readouterr()
        run = fit(sets, runs, settings=RICH)
        said = capsys.readouterr().out
        if said:
            assert_one_line(said, "Tiny: ", path.name)
            assert run.how in ("trained", "continued after epoch 2", "continued after epoch 3"), what
            losses += 1
        else:
            assert run.how == ("loaded" if kind == "finished" else "continued after epoch 3"), what
        assert_same_run(run, whole)
        assert load_pickle(folder / "history.pkl") == run.history, what
        shutil.rmtree(runs)
    assert losses > DAMAGES / 10  # else the damage did not reach what is read


def test_a_damaged_checkpoint_costs_one_epoch(sets, undisturbed, tmp_path, capsys):
    folder = interrupted(sets, tmp_path, 4)
    (folder / "last.pt").write_bytes(b"")
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        in_train_epoch(patch, before=lambda epoch, model: trained.append(epoch))
        run = fit(sets, tmp_path)
    assert trained == [3, 4]
    assert run.how == "continued after epoch 2"
    assert_one_line(
        capsys.readouterr().out, "Tiny: goes back to the end of epoch 2, ", str(folder / "last.pt"), "damaged"
    )
    assert_same_run(run, undisturbed)


def test_damage_after_damage(sets, undisturbed, tmp_path, capsys):
    """What is damaged never takes the place of what is good: killed at once after going back, and damaged again."""
    folder = interrupted(sets, tmp_path, 4)
    (folder / "last.pt").write_bytes(b"")
    assert interrupted(sets, tmp_path, 3) == folder
    assert not (folder / "previous.pt").exists()
    assert load_tensors(folder / "last.pt")["epoch"] == 2
    (folder / "last.pt").write_bytes(b"")
    run = fit(sets, tmp_path)
    assert run.how == "trained"
    assert "starts anew" in capsys.readouterr().out
    assert_same_run(run, undisturbed)


def test_weights_damaged_after_loading_are_named(sets, tmp_path):
    run = fit(sets, tmp_path)
    path = training.best_file(run.folder, run.best_epoch)
    torch.save({"epoch": run.best_epoch, "model": torch.nn.Linear(2, 2).state_dict()}, path)
    with pytest.raises(DataError) as stopped:
        run.best()
    assert_one_line(str(stopped.value), str(path), "weight")


def change(*keys, value=None, by=None):
    """Set, by a function of the old value, or remove what lies under the keys of a checkpoint."""

    def changed(state):
        place = state
        for key in keys[:-1]:
            place = place[key]
        if by is not None:
            place[keys[-1]] = by(place[keys[-1]])
        elif value is not None:
            place[keys[-1]] = value
        else:
            del place[keys[-1]]
        return state

    return changed


WEIGHT = "layers.2.weight"
WRONG = {
    "a list": lambda state: [state],
    "no epoch": change("epoch"),
    "no history": change("history"),
    "no model": change("model"),
    "no average": change("average"),
    "something more": change("more", value=1),
    "another epoch": change("epoch", value=2),
    "epoch as text": change("epoch", value="3"),
    "a column less": change("history", "val_iou"),
    "a column more": change("history", "val_ious", value=[0.1, 0.2, 0.3]),
    "a shorter column": change("history", "val_iou", by=lambda values: values[:-1]),
    "an empty history": change("history", by=lambda history: {name: [] for name in history}),
    "a history of text": change("history", "val_iou", value=["a", "b", "c"]),
    "a history of integers": change("history", "seconds", value=[1, 2, 3]),
    "NaN in the history": change("history", "val_mean", by=lambda values: [*values[:-1], math.nan]),
    "a history that is a list": change("history", value=[1, 2]),
    "more epochs than there are": change("history", by=lambda history: {name: v * 9 for name, v in history.items()}),
    "a weight less": change("model", WEIGHT),
    "a weight too large": change("model", WEIGHT, by=lambda weight: torch.cat((weight, weight))),
    "a weight in float64": change("model", WEIGHT, by=torch.Tensor.double),
    "a weight of NaN": change("model", WEIGHT, by=lambda weight: weight * torch.nan),
    "a weight that is a number": change("model", WEIGHT, value=3.0),
    "averages of infinity": change("average", f"module.{WEIGHT}", by=lambda weight: weight / 0),
    "no optimizer state": change("optimizer", "state", value={}),
    "optimizer state of one weight": change("optimizer", "state", 1),
    "optimizer state of another shape": change("optimizer", "state", 0, "exp_avg", by=torch.Tensor.flatten),
    "no step": change("optimizer", "state", 0, "step"),
    "no groups": change("optimizer", "param_groups", value=[]),
    "no learning rate": change("optimizer", "param_groups", 0, "lr"),
    "learning rate as text": change("optimizer", "param_groups", 0, "lr", value="fast"),
    "learning rate of NaN": change("optimizer", "param_groups", 0, "lr", value=math.nan),
    "a schedule with a method's name": change("schedule", "step", value=5),
    "a schedule of unknown phases": change("schedule", "_schedule_phases", 0, "start_lr", value="nothing"),
    "no last epoch of the schedule": change("schedule", "last_epoch"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_readable_file_of_another_build_is_damage(sets, rich, tmp_path, capsys, what):
    whole, part = rich
    shutil.copytree(part, tmp_path / "runs")
    path = next((tmp_path / "runs").iterdir()) / "last.pt"
    torch.save(WRONG[what](load_tensors(path)), path)
    capsys.readouterr()
    run = fit(sets, tmp_path / "runs", settings=RICH)
    assert_one_line(capsys.readouterr().out, "Tiny: goes back to the end of epoch 2", str(path))
    assert run.how == "continued after epoch 2"
    assert_same_run(run, whole)


# ---------------------------------------------------------------------------------------------- made to do harm


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


class Liar(dict):
    """Says that it is a dict, and is more."""

    __class__ = dict

    def __init__(self, marker):
        super().__init__(epoch=3)
        self.marker = marker

    def __reduce_ex__(self, protocol):
        return eval, (f"open({str(self.marker)!r}, 'w').close() or {{}}",)


def attacks(marker):
    touch = f"open({str(marker)!r}, 'w').close()"
    data_set = TensorDataset(torch.zeros(2, 1, 48, 60))
    data_set.tensors += (Runs(eval, touch),)
    return {
        "os.system": Runs(os.system, f"touch '{marker}'"),
        "eval": Runs(eval, touch),
        "exec": Runs(exec, touch),
        "a class that lies": Liar(marker),
        "nested": {"epoch": 1, "history": {"val_mean": [[({"a": Runs(eval, touch)},)]]}},
        "beside tensors": [(torch.zeros(1, 48, 60), Runs(eval, touch))],
        "in a data set": data_set,
        "through a map": Runs(map, eval, [touch]),
        "a program": Runs(subprocess.call, ["touch", str(marker)]),
    }


def write_attack(value, path, form):
    if form == "pickle":
        path.write_bytes(pickle.dumps(value, protocol=2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "torch")


ATTACKS = list(attacks(Path("marker")))
FORMS = ("torch", "torch's old form", "pickle")


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attacks_would_do_harm(tmp_path, attack):
    """Else those below would show nothing."""
    marker = tmp_path / "it ran"
    write_attack(attacks(marker)[attack], tmp_path / "file", "torch")
    read = torch.load(tmp_path / "file", weights_only=False)
    if attack == "through a map":
        list(read)
    assert marker.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_files_of_a_run_that_would_run_code(sets, rich, tmp_path, capsys, attack):
    """Each of a run's files in each form: none runs code, each is named, and the run ends as if undisturbed."""
    whole, _ = rich
    marker = tmp_path / "it ran"
    name = whole.folder.name
    for number, form in enumerate(FORMS):
        for file in ("last.pt", training.best_file(whole.folder, whole.best_epoch).name, "history.pkl"):
            folder = tmp_path / f"{number}-{file}" / name
            shutil.copytree(whole.folder, folder)
            write_attack(attacks(marker)[attack], folder / file, form)
            with pytest.raises(DataError, match=f"{file}: (refused|damaged)"):
                (load_pickle if file == "history.pkl" else load_tensors)(folder / file)
            if number == 0:
                capsys.readouterr()
                assert_same_run(fit(sets, folder.parent, settings=RICH), whole)
                said = capsys.readouterr().out
                if file == "history.pkl":
                    assert said == ""  # a copy for other readers, which has been written again
                    assert load_pickle(folder / file) == whole.history
                else:
                    assert_one_line(said, "Tiny: ", str(folder / file), "refused")
            assert not marker.exists()
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def course(sets, tmp_path_factory):
    """The course's nine files, of few pictures."""
    folder = tmp_path_factory.mktemp("course")
    for task, (splits, _) in sets.items():
        for split in sources.SPLITS:
            part = getattr(splits, split).head(8)
            names = sources.COURSE_FILES[task]
            stored = TensorDataset(part.pictures.float() / 255, part.labels)
            torch.save(stored, folder / names["pictures"].format(split))
            if task == "det":
                torch.save([list(boxes) for boxes in part.lists], folder / names["lists"].format(split))
    return folder


NINE = [
    (task, split, names[kind].format(split))
    for task, names in sources.COURSE_FILES.items()
    for kind in names
    for split in sources.SPLITS
]


@pytest.mark.parametrize(("task", "split", "name"), NINE)
def test_course_files_that_would_run_code(course, tmp_path, task, split, name):
    shutil.copytree(course, tmp_path / "course")
    marker, path = tmp_path / "it ran", tmp_path / "course" / name
    sources.load_course(path.parent, task, split)
    for attack in ATTACKS:
        for form in FORMS:
            write_attack(attacks(marker)[attack], path, form)
            with pytest.raises(DataError, match=f"{name}: refused, it holds more than tensors"):
                sources.load_course(path.parent, task, split)
            assert not marker.exists()


def compressed(path):
    """200 MB of zeros in a file of 200 kB."""
    torch.save(torch.zeros(10), path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, bytes(200_000_000) if name.endswith("data/0") else content)


def endless(path):
    """One number that says to be four million pictures."""
    pictures = torch.zeros(1, 1, 1, 1).expand(4_000_000, 1, 48, 60)
    torch.save(TensorDataset(pictures, torch.zeros(1, 1).expand(4_000_000, 6)), path)


def lists_of_lists(path):
    value = [torch.zeros(6)]
    for _ in range(9):
        value = [value] * 30
    torch.save(value, path)


def many_of_one(path):
    """As long a list for every picture, and the same for all."""
    torch.save([[torch.zeros(6)] * 20_000] * 20_000, path)


def deep(path):
    value = []
    for _ in range(100):
        value = [value]
    torch.save(value, path)


def within_itself(path):
    value = []
    value.append(value)
    torch.save(value, path)


def without_numbers(path):
    torch.save(TensorDataset(torch.zeros(10**9, 1, 48, 60, device="meta"), torch.zeros(10**9, 6, device="meta")), path)


def sparse(path):
    torch.save([torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (10**6, 10**6))], path)


@pytest.mark.parametrize(
    "bomb", [compressed, endless, lists_of_lists, many_of_one, deep, within_itself, without_numbers, sparse]
)
@pytest.mark.parametrize(("task", "name"), [("loc", "localization_val.pt"), ("det", "list_y_true_val.pt")])
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Validating sparse")
def test_small_files_that_would_fill_the_memory(course, tmp_path, task, name, bomb):
    shutil.copytree(course, tmp_path / "course")
    path = tmp_path / "course" / name
    bomb(path)
    before, began = peak_memory()["ram"], time.process_time()
    with pytest.raises(DataError, match=f"{name}: .*refused") as stopped:
        sources.load_course(path.parent, task, "val")
    assert_one_line(str(stopped.value))
    assert peak_memory()["ram"] - before < 0.05  # GB
    assert time.process_time() - began < 10


def test_a_pickle_that_would_fill_the_memory(tmp_path):
    """Puts a value at place 2^31 - 1 of the memo, for which the unpickler in C takes memory for as many."""
    content = pickle.PROTO + b"\x04" + pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + pickle.STOP
    path = tmp_path / "history.pkl"
    save_pickle(path, None)
    digest = files.hashlib.sha256(content).digest()
    path.write_bytes(content + path.read_bytes()[-len(digest) - 7 : -len(digest)] + digest)
    assert load_pickle(path) is None


def test_ordinary_files_are_not_refused(tmp_path):
    """Views of one tensor, a label that all share, parameters."""
    path = tmp_path / "file"
    pictures, label = torch.rand(500, 1, 48, 60), torch.tensor(labels.NO_DIGIT)
    torch.save([(picture, label) for picture in pictures], path)
    assert torch.equal(load_tensors(path)[499][0], pictures[499])
    torch.save([[box] for box in torch.rand(5000, 6)], path)
    assert len(load_tensors(path)) == 5000
    torch.save({"weight": torch.nn.Parameter(torch.ones(3))}, path)
    assert not load_tensors(path)["weight"].requires_grad


# ---------------------------------------------------------------------------------------------- drawn by chance

drawn = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not SOAK,
    database=None,
    suppress_health_check=list(HealthCheck),
)
few = settings(drawn, max_examples=FIGURES)
ANY = st.floats(width=32)  # NaN, infinities and numbers too small to be normal included
NEAR = st.one_of(st.sampled_from((0.0, 1.0, -1.0, 0.5, 1 / 3, 2 / 3, 2.0, -0.0)), st.floats(-0.25, 1.25, width=32), ANY)
LARGE = 2.0**60  # whose square is still a float32
SHAPES = {"loc": ((15,), (6,)), "det": ((6, 2, 3), (2, 3, 6))}
tasks = st.sampled_from(("loc", "det"))


@st.composite
def split_labels(draw, task, count):
    """Valid labels, (count, 6) or (count, 2, 3, 6), with anything where there is no digit."""
    shape = (count, *SHAPES[task][1][:-1])
    unit = arrays(np.float64, shape, elements=st.floats(0, 1))
    pc = draw(arrays(np.float64, shape, elements=st.sampled_from((0.0, 1.0))))
    w, h = (0.02 + 0.97 * draw(unit) for _ in range(2))
    if task == "loc":
        x, y = w / 2 + draw(unit) * (1 - w), h / 2 + draw(unit) * (1 - h)
    else:  # a centre in the cell, and a box around it that stays in the picture
        x, y = draw(unit), draw(unit)
        x, y = 0.02 + 0.96 * x, 0.02 + 0.96 * y
        column, row = np.arange(3), np.arange(2)[:, None]
        w = w * 2 * np.minimum(x + column, 3 - x - column)
        h = h * 2 * np.minimum(y + row, 2 - y - row)
    c = np.floor(draw(unit) * 0.999 * labels.CLASSES[task])
    found = torch.tensor(np.stack((pc, x, y, w, h, c), -1), dtype=torch.float32)
    filler = torch.tensor(draw(arrays(np.float32, (*shape, 5), elements=ANY)))
    found[..., 1:] = torch.where(found[..., :1] == 1, found[..., 1:], filler)
    return found


@st.composite
def pairs(draw, elements):
    """A task, outputs of such elements, and valid labels."""
    task, count = draw(tasks), draw(st.integers(1, 4))
    outputs = torch.tensor(draw(arrays(np.float32, (count, *SHAPES[task][0]), elements=elements)))
    return task, outputs, draw(split_labels(task, count))


@drawn
@given(st.lists(st.lists(arrays(np.float32, 6, elements=NEAR), max_size=4), max_size=4))
def test_drawn_lists_become_a_grid_or_an_error(drawn_lists):
    lists = [[torch.tensor(box) for box in boxes] for boxes in drawn_lists]
    try:
        grid = labels.lists_to_grid(lists, "drawn")
    except DataError as error:
        assert_one_line(str(error), "drawn: picture ")
        return
    assert grid.shape == (len(lists), 2, 3, 6)
    assert torch.isfinite(grid).all()
    back = labels.grid_to_lists(grid)
    for boxes, found in zip(lists, back, strict=True):
        digits = sorted(box.tolist() for box in boxes if box[0] == 1)
        assert sorted(found.tolist()) == digits


@drawn
@given(tasks, arrays(np.float32, array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6), elements=NEAR))
def test_drawn_labels_are_good_or_named(task, values):
    found = torch.tensor(values)
    try:
        labels.check_labels(found, task, "drawn")
    except DataError as error:
        assert_one_line(str(error), "drawn: ")
    else:
        truth = utils.true_boxes(found, task)
        assert len(truth) == len(found)
        assert all(torch.isfinite(each["boxes"]).all() for each in truth)


@drawn
@given(tasks.flatmap(lambda task: st.tuples(st.just(task), st.integers(1, 5).flatmap(lambda n: split_labels(task, n)))))
def test_drawn_good_labels_pass_and_perfect_outputs_score_1(pair):
    task, found = pair
    labels.check_labels(found, task, "drawn")
    outputs = torch.zeros(len(found), *SHAPES[task][0])
    truth = torch.where(found[..., :1] == 1, found, 0.0)
    cells = truth if task == "loc" else truth.movedim(-1, 1)
    outputs[:, :1], outputs[:, 1:5] = cells[:, :1] * 40 - 20, cells[:, 1:5]
    if task == "loc":
        outputs[torch.arange(len(found)), 5 + truth[:, 5].long()] = 20
    else:
        outputs[:, 5] = cells[:, 5] * 40 - 20
    scores = utils.score(outputs, found, task)
    digits = bool((found[..., 0] == 1).any())
    assert scores["accuracy"] == 1
    assert scores["iou"] == pytest.approx(float(digits), abs=2e-3)
    assert scores["loss"] < 1e-6
    for guess, true in zip(utils.decode(outputs, task), utils.true_boxes(found, task), strict=True):
        assert sorted(guess["labels"].tolist()) == sorted(true["labels"].tolist())
        guessed, expected = (sorted(boxes.tolist()) for boxes in (guess["boxes"], true["boxes"]))
        if expected:
            assert np.abs(np.array(guessed) - np.array(expected)).max() < 0.01  # pixels


@drawn
@given(pairs(st.floats(-LARGE, LARGE, width=32)))
def test_drawn_outputs_have_a_finite_loss_and_score(pair):
    task, outputs, found = pair
    outputs.requires_grad_()
    for kind in utils.BOX_LOSSES:
        loss = utils.combined_loss(outputs, found, task, kind)
        assert all(torch.isfinite(term) for term in loss)
        assert loss.total.item() == pytest.approx(sum(term.item() for term in loss[1:]), rel=1e-5)
        (slope,) = torch.autograd.grad(loss.total, outputs)
        assert torch.isfinite(slope).all()
    scores = utils.score(outputs.detach(), found, task)
    assert all(math.isfinite(value) for value in scores.values())
    assert all(0 <= scores[name] <= 1 for name in ("accuracy", "iou", "digit_accuracy", "iou_all", "mean"))


@drawn
@given(pairs(ANY))
def test_drawn_outputs_are_decoded_or_refused(pair):
    task, outputs, _ = pair
    for nms_iou in (None, 0.5):
        try:
            decoded = utils.decode(outputs, task, nms_iou=nms_iou)
        except ValueError as error:
            assert_one_line(str(error), "outputs: expected finite numbers")
            assert not torch.isfinite(outputs).all()
            continue
        assert torch.isfinite(outputs).all()
        assert len(decoded) == len(outputs)
        for each in decoded:
            boxes, scores = each["boxes"], each["scores"]
            assert (boxes >= 0).all()
            assert (boxes <= boxes.new_tensor((60, 48, 60, 48))).all()
            assert (boxes[:, :2] <= boxes[:, 2:]).all()
            assert ((scores >= 0) & (scores <= 1)).all()
            assert (scores.diff() <= 0).all()


@drawn
@given(
    tasks,
    array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=15),
    array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
)
def test_drawn_shapes_fit_or_are_named(task, shape, other):
    outputs, found = torch.zeros(shape), torch.zeros(other)
    fits = shape[1:] == SHAPES[task][0] and other == (*shape[:1], *SHAPES[task][1])
    for function in (utils.combined_loss, utils.score, utils.match):
        if not fits:
            with pytest.raises(ValueError, match=r"expected outputs of shape|need labels of shape"):
                function(outputs, found, task)
    if shape[1:] != SHAPES[task][0]:
        with pytest.raises(ValueError, match="expected outputs of shape"):
            utils.decode(outputs, task)


@few
@given(pairs(st.floats(-LARGE, LARGE, width=32)))
def test_drawn_outputs_can_be_drawn(pair):
    task, outputs, found = pair
    pictures = torch.zeros(len(found), 1, 48, 60)
    figure = utils.draw_boxes(pictures, found, task, outputs)
    figure.canvas.draw()
    utils.plt.close(figure)
    figure = utils.plot_by_size(utils.match(outputs, found, task), found, task)
    figure.canvas.draw()
    utils.plt.close(figure)


def test_scores_that_are_not_finite_stop_a_run(sets, tmp_path, monkeypatch):
    """Whichever of them: an IoU of NaN would be the best epoch for ever."""
    original = utils.score

    def broken(outputs, found, task):
        return {**original(outputs, found, task), "iou": math.nan}

    monkeypatch.setattr(training, "describe_run", lambda *arguments: {"network": "Tiny"})
    monkeypatch.setattr(utils, "score", broken)
    with pytest.raises(NonFiniteLoss, match="Tiny, epoch 1: train_iou is nan"):
        fit(sets, tmp_path)
    assert not list(tmp_path.rglob("last.pt"))


# ---------------------------------------------------------------------------------------------- memory


def bytes_in_tensors():
    return sum(thing.nbytes for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell how much memory is used")
def test_training_takes_no_more_memory_from_epoch_to_epoch(tmp_path, monkeypatch):
    """A copy of the pictures kept from every epoch would be 8 MB each, one of the outputs is seen among the tensors."""
    splits = data.load("loc", "digits", sizes=(720, 40, 8), folder=tmp_path / "data", say=lambda text: None)
    normal = utils.Normalizer.fit(splits.train.pictures)
    used, kept = [], []
    original = training.Progress.epoch

    def measure(self, history):
        original(self, history)
        gc.collect()
        used.append(1000 * resident())  # MB
        kept.append(bytes_in_tensors())

    monkeypatch.setattr(training.Progress, "epoch", measure)
    epochs = 60 if SOAK else 12
    training.fit(Tiny, splits, normal, "loc", replace(RICH, epochs=epochs, batch_size=64), tmp_path / "runs", CPU)
    assert len(used) == epochs
    assert max(used[2:]) - used[2] < 8
    assert len(set(kept[2:])) == 1

"""What the tests of training and of faults share: tiny networks, short runs, and processes that get killed."""

import functools
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

import data
import models
import training
import utils
from data.files import load_tensors
from training import Settings

SHORT = Settings(epochs=4, batch_size=16, learning_rate=0.02, momentum=0.9, seed=7)
LONG = replace(SHORT, epochs=20, batch_size=8)
CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A localizer that trains in no time. `fault` spoils its outputs, see `fail_at`."""

    fault = None

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(180, 15))

    def forward(self, pictures):
        outputs = self.layers(pictures)
        return outputs if self.fault is None or not self.training else self.fault(outputs)


class Tiny2(nn.Module):
    """The same for detection, with batch norm, whose running statistics belong to the state as well."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.last = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, pictures):
        return self.last(self.layers(pictures))


TINY = {"loc": Tiny, "det": Tiny2}


def fit(sets, runs, task="loc", settings=SHORT, network=None):
    splits, normal = sets[task]
    return training.fit(network or TINY[task], splits, normal, task, settings, runs)


def without_measured(found):
    """What a history or results.json holds, without the seconds that it took, in which equal runs differ."""
    if isinstance(found, dict):
        return {name: without_measured(value) for name, value in found.items() if name != "seconds"}
    return [without_measured(value) for value in found] if isinstance(found, list) else found


def assert_same_run(run, other):
    assert without_measured(run.history) == without_measured(other.history)
    assert run.best_epoch == other.best_epoch
    weights, expected = run.best().state_dict(), other.best().state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def in_train_epoch(monkeypatch, before=None, after=None):
    """Call `before` at the beginning and `after` at the end of every epoch's training, with epoch and network.

    `functools.wraps` keeps the function's source what it was: the code is part of what a run is recognized by."""
    original = training.train_epoch

    @functools.wraps(original)
    def wrapped(trainee, pictures, labels, normal, task, settings, epoch, step_done):
        if before is not None:
            before(epoch, trainee.model)
        found = original(trainee, pictures, labels, normal, task, settings, epoch, step_done)
        if after is not None:
            after(epoch, trainee.model)
        return found

    monkeypatch.setattr(training, "train_epoch", wrapped)


def never(epoch, model):
    pytest.fail(f"epoch {epoch} is trained again")


def interrupt_at(number):
    def interrupt(epoch, model):
        if epoch == number:
            raise KeyboardInterrupt

    return interrupt


def train_in_a_process(stored, runs, pipe, fatal_write):
    """What the processes do that get killed. Each epoch's end is told to the pipe.

    `fatal_write`: None, or (n, after): the process kills itself before or after the n-th file gets its final name.
    """
    torch.set_num_threads(1)
    splits = data.Splits(*(data.Split(*part) for part in load_tensors(stored)), "loc", "digits")
    normal = utils.Normalizer.fit(splits.train.pictures)
    if fatal_write is not None:
        original, writes = os.replace, iter(range(1, 1_000_000))

        def fatal(source, target):
            number = next(writes)
            if (number, False) == fatal_write:
                os.kill(os.getpid(), signal.SIGKILL)
            original(source, target)
            if (number, True) == fatal_write:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = fatal
    epoch_done = training.Progress.epoch

    def tell(self, history):
        epoch_done(self, history)
        pipe.send(len(history["seconds"]))

    training.Progress.epoch = tell
    pipe.send("started")
    training.fit(models.SimpleNet, splits, normal, "loc", LONG, runs, CPU)
    pipe.send("finished")


def start(processes, stored, runs, fatal_write=None):
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=train_in_a_process, args=(stored, runs, there, fatal_write), daemon=True)
    process.start()
    there.close()  # else a killed process would not close the pipe
    return process, here


def wait_for(wanted, pipe):
    """All messages until the wanted one, or until the process is dead."""
    messages = []
    while not messages or messages[-1] != wanted:
        assert pipe.poll(120), "no sign of life"
        try:
            messages.append(pipe.recv())
        except EOFError:
            break
    return messages


def finished_run(stored, runs):
    """The run that the processes have left behind; nothing of it may be left to train."""
    splits = data.Splits(*(data.Split(*part) for part in load_tensors(stored)), "loc", "digits")
    with pytest.MonkeyPatch.context() as patch:
        in_train_epoch(patch, before=never)
        return training.fit(
            models.SimpleNet, splits, utils.Normalizer.fit(splits.train.pictures), "loc", LONG, runs, CPU
        )

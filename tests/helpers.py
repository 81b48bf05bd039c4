"""What the tests of training and of faults share: tiny networks, short runs, and processes that get killed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import data
import models
import training
import utils
from data.files import load_tensors
from training import Hooks, Settings

SHORT = Settings(epochs=4, batch_size=16, learning_rate=0.02, momentum=0.9, seed=7, precision="float32")
LONG = replace(SHORT, epochs=8, batch_size=8)
# All that a run can hold: the optimizer's two means of every weight, a schedule, wrappers around the network; and the
# other precision.
RICH = replace(training.OWN, epochs=4, batch_size=16, seed=7, precision="bfloat16")
CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A localizer that trains in no time."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(180, 15))

    def forward(self, images):
        return self.layers(images)


class Tiny2(nn.Module):
    """The same for detection, with batch norm, whose running statistics belong to the state as well."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.last = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, images):
        return self.last(self.layers(images))


TINY = {"loc": Tiny, "det": Tiny2}


def fit(sets, runs, task="loc", settings=SHORT, network=None, hooks=None):
    """A run that is kept in the folder `runs`, with a checkpoint after every epoch."""
    splits, normal = sets[task]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS_DIR", str(runs))
        patch.setattr(training.runs, "SAVED_EVERY", 0.0)
        return training.fit(network or TINY[task], splits, normal, settings, hooks)


def call_in(epoch, step, function):
    """Hooks that call a function, with the state, after one step of one epoch, both counted from 1."""

    def on_step(state, number):
        if (state.epoch + 1, number) == (epoch, step):
            function(state)

    return Hooks(on_step=on_step)


def interrupted(sets, runs, epoch, task="loc", settings=SHORT, step=1):
    """Train until a step of an epoch, and no further. Returns the run's folder."""

    def interrupt(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(sets, runs, task, settings, hooks=call_in(epoch, step, interrupt))
    return next(runs.iterdir())


def fail(state, step):
    pytest.fail(f"epoch {state.epoch + 1} is trained again")


NEVER = Hooks(on_step=fail)


def without_measured(found):
    """What a history or results.json holds, without the seconds that it took, in which equal runs differ."""
    if isinstance(found, dict):
        return {name: without_measured(value) for name, value in found.items() if name != "seconds"}
    return [without_measured(value) for value in found] if isinstance(found, list) else found


def assert_same_run(run, other):
    """Bit for bit: the history, the best epoch and its weights."""
    assert without_measured(run.history) == without_measured(other.history)
    weights, expected = run.load(CPU).state_dict(), other.load(CPU).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


# ---------------------------------------------------------------------------------------------- other processes


def fit_stored(stored, runs, hooks=None):
    """The run of the processes that get killed, of splits that lie in a file."""
    splits = data.Splits(*(data.Split(*part) for part in load_tensors(stored)), "digits")
    sets = {"loc": (splits, utils.Normalizer.fit(splits.train.images))}
    return fit(sets, runs, "loc", LONG, models.SimpleNet, hooks)


def train_in_a_process(stored, runs, pipe, prepare):
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    prepare()
    pipe.send("started")
    fit_stored(stored, runs, Hooks(on_epoch=lambda state: pipe.send(state.epoch)))
    pipe.send("finished")


def start(processes, stored, runs, prepare=int):
    """A process that calls `prepare`, trains the run, and tells the pipe of every epoch's end."""
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=train_in_a_process, args=(stored, runs, there, prepare), daemon=True)
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

"""What the tests of training and of faults share: tiny networks and short runs."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import training
import utils
from training import Hooks, Settings, runs

SHORT = Settings(epochs=4, batch_size=16, learning_rate=0.02, momentum=0.9, seed=7)
RICH = replace(training.OWN, epochs=4, batch_size=16, seed=7)  # with all that a run can hold, and bfloat16
CPU = torch.device("cpu")


def contents(folder):  # without locks
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


class Tiny(nn.Sequential):  # a localizer that trains in no time
    def __init__(self):
        super().__init__(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(180, 15))


class Tiny2(nn.Sequential):  # a detector, with batch norm, whose running statistics belong to the state as well
    def __init__(self):
        layers = nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)
        super().__init__(nn.AvgPool2d(8), *layers)


def fit(sets, folder, task="loc", settings=SHORT, network=None, hooks=None, **options):
    """A run that is kept in a folder, with a checkpoint after every epoch; `options` as those of `training.fit`."""
    options.setdefault("precision", "bfloat16" if settings == RICH else "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS_DIR", str(folder))
        patch.setattr(runs, "SAVED_EVERY", 0.0)
        return training.fit(network or {"loc": Tiny, "det": Tiny2}[task], sets[task], settings, hooks, **options)


def call_in(epoch, step, function):
    """Hooks that call a function, with the state, after one step of one epoch, both counted from 1."""
    return Hooks(lambda state, number: function(state) if (state.epoch + 1, number) == (epoch, step) else None)


def interrupted(sets, folder, epoch, task="loc", settings=SHORT, step=1):
    """Train until a step of an epoch, and no further. Returns the folder of the run, if it is the first."""
    with pytest.raises(KeyboardInterrupt):
        fit(sets, folder, task, settings, hooks=call_in(epoch, step, Mock(side_effect=KeyboardInterrupt)))
    return next(folder.iterdir())


def evaluate(network, split):
    """The metric of a network on a split."""
    return utils.score(utils.infer(network, split.images), split.labels)


NEVER = Hooks(on_step=lambda state, step: pytest.fail(f"epoch {state.epoch + 1} is trained again"))


def same_run(run, other):
    """The first run, which has to be the other bit for bit: history, samples, and the best epoch's weights."""
    assert {**run.history, "seconds": None} == {**other.history, "seconds": None}
    assert run.val_samples == other.val_samples
    torch.testing.assert_close(run.load(CPU).state_dict(), other.load(CPU).state_dict(), rtol=0, atol=0)
    return run

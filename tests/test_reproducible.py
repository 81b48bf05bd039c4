"""The same commands give the same results: in another process, with other numbers of threads, on another device."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import without_seconds

import models
import training
import utils
from training import runs


def train(sets, threads, device):
    torch.set_num_threads(threads)
    # Slowly: AdamW's first steps are as long as the rate whatever the gradient, so that last bits decide signs.
    ours = replace(training.OWN, learning_rate=2e-4, width=16, depth=1)
    for task, network, recipe in (("loc", models.SimpleNet, training.REFERENCE), ("det", models.CompactNet2, ours)):
        for precision in ("float32", "bfloat16"):
            splits, recipe = sets[task], replace(recipe, epochs=1, batch_size=32)
            state = training.build(network, recipe, utils.Normalize.fit(splits.train.images), 72, precision, device)
            history = training.train(state, splits, recipe)
            yield runs.run_spec(network, splits, recipe, None, precision), state.model[0].mean.item(), history


def train_all(*about):
    return list(train(*about))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_thread_agrees_with_two_and_with_a_gpu(sets, one_core, processes, device):
    """Sums in another order differ in their last bits, and every step makes more of it. These are a few."""
    if device == "cuda" and not torch.cuda.device_count():
        pytest.skip("there is no GPU")
    with processes.Pool(1) as pool:
        others = pool.apply(train_all, (sets, 2, device))
    for (spec, mean, history), (same_spec, same_mean, other) in zip(train(sets, 1, "cpu"), others, strict=True):
        assert (spec, mean) == (same_spec, same_mean)  # data, code and normalization, whatever a process's hashes
        near = {"float32": 0.005, "bfloat16": 0.02}[spec["precision"]]
        for name, values in without_seconds(other).items():
            tolerance = {"rel" if "loss" in name or "objective" in name else "abs": near}
            assert history[name] == pytest.approx(values, **tolerance), name


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="in `make soak`")
def test_two_processes_give_the_same_results(tmp_path):
    """`make run` in the smoke profile, twice, each with nothing to load."""
    results, home = [], Path(training.__file__).resolve().parent.parent
    for name in ("first", "second"):
        about = {"RUNS_DIR": str(tmp_path / name), "PROFILE": "smoke", "DATA_SOURCE": "digits", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "scripts/run.py"], cwd=home, env=os.environ | about, check=True, timeout=900)
        results.append(json.loads((tmp_path / name / "smoke" / "figures" / "results.json").read_text(encoding="utf-8")))
    assert set(results[0]) == {"loc", "det"}
    assert without_seconds(results[0]) == without_seconds(results[1])

"""The same commands give the same results: in another process, with other numbers of threads, on another device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import without_measured

HOME = Path(__file__).resolve().parent.parent
TRAIN = """
import dataclasses, itertools, json, pathlib, sys, torch, data, models, training, utils

torch.set_num_threads(int(sys.argv[1]))
found, networks = [], {"loc": (models.SimpleNet, models.CompactNet), "det": (models.SimpleNet2, models.CompactNet2)}
for task in networks:
    splits = data.load(task, "digits", sizes=(256, 128, 64), folder=pathlib.Path(sys.argv[3]), log=lambda text: None)
    normal = utils.Normalizer.fit(splits.train.images)
    # Slowly: AdamW's first steps are as long as the rate whatever the gradient, so that last bits decide signs.
    pairs = zip(networks[task], (training.REFERENCE, dataclasses.replace(training.OWN, learning_rate=2e-4)))
    for (network, recipe), precision in itertools.product(pairs, ("float32", "bfloat16")):
        settings = dataclasses.replace(recipe, epochs=1, precision=precision)
        state = training.build(network, settings, torch.device(sys.argv[2]), len(splits.train))
        history = training.train(state, splits, normal, settings)
        found.append([training.keys.describe_run(network, splits, normal, settings), history])
print(json.dumps(found))
"""


def train(threads, device, folder):
    command = [sys.executable, "-c", TRAIN, str(threads), device, str(folder)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    return without_measured(json.loads(done.stdout))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_thread_agrees_with_two_and_with_a_gpu(tmp_path, device):
    """Sums in another order differ in their last bits, and every step makes more of it. These are four."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    for (about, history), (same, other) in zip(train(1, "cpu", tmp_path), train(2, device, tmp_path), strict=True):
        assert about == same  # normalization, data and code, whatever the hashes of this process
        near = {"float32": 0.005, "bfloat16": 0.02}[about["settings"]["precision"]]
        for name, values in other.items():
            tolerance = {"rel": near} if "loss" in name or name == "learning_rate" else {"abs": near}
            assert history[name] == pytest.approx(values, **tolerance), name


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="in `make soak`")
def test_two_processes_give_the_same_results(tmp_path):
    """`make run` in the smoke profile, twice, each with nothing to load."""
    found = []
    for name in ("first", "second"):
        about = {"RUNS_DIR": str(tmp_path / name), "PROFILE": "smoke", "DATA_SOURCE": "digits", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "scripts/run.py"], cwd=HOME, env=os.environ | about, check=True, timeout=900)
        found.append(json.loads((tmp_path / name / "smoke" / "figures" / "results.json").read_text(encoding="utf-8")))
    assert set(found[0]) == {"loc", "det"}
    assert without_measured(found[0]) == without_measured(found[1])

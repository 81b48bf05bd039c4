"""Figures, tables and the choice of examples: what is drawn is what the labels and outputs say."""

import json
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from matplotlib.patches import Rectangle

import data
import utils

mpl.use("Agg")  # no screen


@pytest.fixture(scope="module", params=["loc", "det"])
def splits(request, tmp_path_factory):
    return data.load(request.param, "digits", sizes=(60, 30, 30), folder=tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def perfect(labels, task):
    """Outputs that say exactly what the labels say."""
    values = torch.where(labels[..., :1] > 0, labels, 0.0)
    pc, boxes, category = values[..., :1] * 20 - 10, values[..., 1:5], values[..., 5]
    if task == "loc":
        return torch.cat((pc, boxes, torch.nn.functional.one_hot(category.long(), 10) * 20.0), -1)
    return torch.cat((pc, boxes, category[..., None] * 20 - 10), -1).movedim(-1, 1)


def history(means):
    names = ("loss", "accuracy", "iou", "mean")
    return {f"{part}_{name}": means for part in ("train", "val") for name in names}


def rectangles(figure, colour):
    patches = [patch for axes in figure.axes for patch in axes.patches if isinstance(patch, Rectangle)]
    return [patch for patch in patches if patch.get_edgecolor() == to_rgba(colour)]


def test_draw_boxes_puts_true_and_predicted_boxes_where_they_are(splits):
    labels = splits.val.labels
    outputs = perfect(labels, splits.task)
    figure = utils.draw_boxes(splits.val.pictures, labels, splits.task, outputs, title="boxes")
    expected = [box.tolist() for each in utils.true_boxes(labels, splits.task) for box in each["boxes"]]
    for colour in (utils.TRUE, utils.PREDICTED):
        drawn = [[*patch.get_xy(), patch.get_width(), patch.get_height()] for patch in rectangles(figure, colour)]
        corners = [[x, y, x + width, y + height] for x, y, width, height in drawn]
        assert torch.allclose(torch.tensor(sorted(corners)), torch.tensor(sorted(expected)), atol=1e-3)
    assert figure.get_suptitle() == "boxes"


def test_draw_boxes_without_outputs_draws_no_prediction(splits):
    figure = utils.draw_boxes(splits.val.pictures[:5], splits.val.labels[:5], splits.task)
    assert rectangles(figure, utils.TRUE)
    assert not rectangles(figure, utils.PREDICTED)


def test_notes_say_what_went_wrong():
    labels = torch.tensor([[1, 0.5, 0.5, 0.4, 0.4, 3]] * 3 + [data.labels.NO_DIGIT] * 2)
    outputs = perfect(labels, "loc")
    outputs[1, 5:] = outputs[1, 5:].roll(1)  # a 4
    outputs[2, 0] = -5.0
    outputs[3, 0] = 5.0
    assert utils._notes(outputs, labels, "loc") == [
        "IoU 1.00",
        "wrong class, IoU 1.00",
        "missed",
        "false alarm",
        "none, right",
    ]


def test_every_figure_of_a_run_is_labelled(splits, tmp_path):
    labels, task = splits.test.labels, splits.task
    outputs = perfect(labels, task)
    matches = utils.match(outputs, labels, task)
    classes = data.labels.CLASSES[task]
    run = SimpleNamespace(name="Net", history=history([0.1, 0.4, 0.3]), best_epoch=2)
    normal = utils.Normalizer.fit(splits.train.pictures)
    figures = [
        utils.plot_history(run),
        utils.plot_comparison([run, run]),
        utils.plot_labels(splits),
        utils.plot_pixels(splits, normal),
        utils.plot_confusion(utils.confusion(matches, classes), "confusion"),
        utils.plot_per_class(utils.per_class(matches, classes), "classes"),
        utils.plot_by_size(matches, labels, task),
    ]
    if task == "det":
        figures.append(utils.plot_digits_per_picture(splits))
        average = utils.mean_average_precision(outputs, labels, task)
        figures.append(utils.plot_precision_recall(average, "precision"))
    for number, figure in enumerate(figures):
        plain = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert all(axes.get_title() for axes in plain)
        assert all(axes.get_xlabel() for axes in plain)
        utils.save_figure(figure, tmp_path, f"figure{number}")
        pixels = imread(tmp_path / f"figure{number}.png")
        assert pixels.shape[1] >= 900  # wide enough to be read at half its size
        assert pixels[..., :3].std() > 0.01  # something is on it


def test_plot_grid_shows_the_cells_labels(tmp_path):
    splits = data.load("det", "digits", sizes=(20, 10, 10), folder=tmp_path)
    label = splits.train.labels[0]
    figure = utils.plot_grid(splits.train.pictures[0], label)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts.count("no digit") == 6 - int(label[..., 0].sum())
    assert any(f"x = {label[label[..., 0] == 1][0, 1]:.3f}" in text for text in texts)


def test_confusion_counts_true_by_predicted():
    labels = torch.tensor([[1, 0.5, 0.5, 0.4, 0.4, digit] for digit in (3, 3, 5)] + [data.labels.NO_DIGIT])
    outputs = perfect(labels, "loc")
    outputs[1, 5:] = outputs[1, 5:].roll(1)  # the second 3 is taken for a 4
    outputs[2, 0] = -5.0  # the 5 is missed
    outputs[3, 0] = 5.0  # false alarm, a 0
    outputs[3, 5] = 9.0
    matrix = utils.confusion(utils.match(outputs, labels, "loc"), 10)
    assert matrix.shape == (11, 11)
    assert matrix.sum() == 4
    assert matrix[3, 3] == matrix[3, 4] == matrix[5, 10] == matrix[10, 0] == 1
    said = utils.describe_confusion(matrix)
    assert "missed digits: 1 of 3; false alarms: 1 of 1 without a digit" in said
    assert "3 taken for 4: 1 of 2" in said


def test_failures_are_exclusive_and_complete():
    labels = torch.tensor([[1, 0.5, 0.5, 0.4, 0.4, 3]] * 4 + [data.labels.NO_DIGIT] * 2)
    outputs = perfect(labels, "loc")
    outputs[0, 0] = -5.0  # missed
    outputs[1, 5:] = outputs[1, 5:].roll(1)  # wrong class
    outputs[2, 1] = 0.8  # shifted by three quarters of its width
    outputs[4, 0] = 5.0  # false alarm
    matches = utils.match(outputs, labels, "loc")
    kinds = utils.failures(matches)
    assert {name: kind.nonzero()[:, 0].tolist() for name, kind in kinds.items()} == {
        "missed": [0],
        "false alarm": [4],
        "wrong class": [1],
        "poor box": [2],
    }
    assert utils.pick_failures(matches, 6, 4).tolist() == [0, 4, 1, 2]
    # Where failures do not fill the places, the poorest boxes do; pictures without a found digit never.
    assert set(utils.pick_failures(matches, 6, 12).tolist()) == {0, 1, 2, 3, 4}


def test_examples_are_the_first_of_their_kind(splits):
    labels = splits.train.labels
    chosen = utils.pick_examples(labels, splits.task, 2)
    assert len(set(chosen.tolist())) == len(chosen)
    rows = labels[chosen].reshape(len(chosen), -1, 6)
    shown = rows[rows[..., 0] == 1][:, 5].unique()
    assert shown.tolist() == list(range(data.labels.CLASSES[splits.task]))
    if splits.task == "det":
        counts = labels[utils.pick_by_count(labels, 2)][..., 0].sum((1, 2)).tolist()
        assert counts == sorted(counts)
        assert counts[:2] == [1, 1]


def test_failing_to_save_a_figure_leaves_the_old_file(tmp_path, monkeypatch):
    figure, _ = plt.subplots()
    utils.save_figure(figure, tmp_path, "figure")
    before = (tmp_path / "figure.png").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        utils.save_figure(figure, tmp_path, "figure")
    assert (tmp_path / "figure.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_diagnose_tells_underfitting_from_overfitting():
    def run(losses, training=(3.0, 2.0, 1.0, 0.5)):
        history = {"val_loss": losses, "train_loss": list(training[: len(losses)])}
        return SimpleNamespace(name="Net", train={"mean": 0.9}, val={"mean": 0.7}, history=history)

    assert "training longer would help" in utils.diagnose(run([3.0, 2.0, 1.0]))
    assert "50% higher in the last: overfitting" in utils.diagnose(run([3.0, 1.0, 1.5, 1.5]))
    assert "hardly any overfitting" in utils.diagnose(run([3.0, 1.0, 1.05, 1.01]))
    assert "gap +0.2000" in utils.diagnose(run([1.0]))


def test_diagnose_does_not_take_a_training_that_came_apart_for_overfitting():
    def say(training, validation):
        history = {"val_loss": validation, "train_loss": training}
        return utils.diagnose(SimpleNamespace(name="Net", train={"mean": 0.9}, val={"mean": 0.7}, history=history))

    apart = say([2.4, 1.8, 1.0, 1.7, 2.6], [2.2, 1.5, 0.5, 2.6, 2.6])
    assert "420% higher in the last, and training loss rose as well: training came apart" in apart
    assert "overfitting" not in apart
    assert "overfitting" in say([2.4, 1.8, 1.0, 0.7, 0.6], [2.2, 1.5, 0.5, 2.6, 2.6])
    assert "hardly any overfitting" in say([2.4, 1.8, 1.0, 1.0, 1.01], [2.2, 1.5, 0.5, 0.5, 0.51])


def test_results_of_one_task_leave_the_others(tmp_path):
    utils.save_results(tmp_path, "loc", {"test": {"mean": 0.5}})
    utils.save_results(tmp_path, "det", {"test": {"mean": 0.7}})
    utils.save_results(tmp_path, "loc", {"test": {"mean": 0.6}})
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved == {"loc": {"test": {"mean": 0.6}}, "det": {"test": {"mean": 0.7}}}


def test_markdown_table_aligns_numbers_and_rounds_fractions():
    table = utils.markdown_table(("name", "count", "share"), [("a", 12345, 0.123456), ("b", 1, 1.0)])
    assert table.splitlines() == [
        "| name | count | share |",
        "| --- | ---: | ---: |",
        "| a | 12,345 | 0.1235 |",
        "| b | 1 | 1.0000 |",
    ]

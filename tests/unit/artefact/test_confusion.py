"""Which class was taken for which: equal to a full matrix, and possible with 21,841 classes."""

import json
import tracemalloc

import numpy as np
import pytest
import torch

from cmtvision.artefact.confusion import MATRIX_CLASSES, Confusion
from cmtvision.artefact.run.read import _scores
from cmtvision.engine.evaluation.evaluate import Evaluation
from cmtvision.engine.evaluation.outputs import gather_logits
from cmtvision.report.page import score_context


@pytest.mark.parametrize("classes", [2, 7, MATRIX_CLASSES + 1])
def test_it_counts_as_a_matrix_does(classes):
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, classes, (2, 500))
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (true, predicted), 1)
    found = Confusion.of(true, predicted, classes)
    again = Confusion.from_json(json.loads(json.dumps(found.to_json())), classes)
    for one in (found, again, Confusion.from_json(matrix.tolist(), classes)):
        assert (one.matrix() == matrix).all()
        assert one.images.tolist() == matrix.sum(axis=1).tolist()
        assert one.claimed.tolist() == matrix.sum(axis=0).tolist()
        assert one.correct.tolist() == matrix.diagonal().tolist()
    assert isinstance(found.to_json(), dict) is (classes > MATRIX_CLASSES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[1]], "of shape"),
        ([[1, 0], [0, -1]], "below 0"),
        ({"true": [0], "predicted": [2], "count": [1]}, "outside"),
        ({"true": [0, 1], "predicted": [0], "count": [1]}, "unequal"),
    ],
)
def test_senseless_counts_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        Confusion.from_json(content, 2)


def test_an_evaluation_of_21841_classes_is_small_and_read_back_by_the_report(tmp_path):
    classes, photos = 21_841, 3_000
    tracemalloc.start()  # Python's and NumPy's own; the process's peak is also that of tests before
    torch.manual_seed(0)
    targets = torch.randint(classes, (photos,))

    def batches():
        for start in range(0, photos, 50):
            places = torch.arange(start, start + 50)
            yield targets[places], targets[places], places

    def forward(numbers):  # right for every third photo
        logits = torch.rand(len(numbers), classes)
        logits[::3].scatter_(1, numbers[::3, None], 2.0)
        return logits

    seen = gather_logits(forward, batches())
    counts = Confusion.of(seen.targets.numpy(), seen.predicted.numpy(), classes)
    names = [f"n{number:08}" for number in range(classes)]
    found = Evaluation(names, "val", photos, seen.correct(), seen.correct_among_five(), seen.mean_loss(), counts)
    assert found.top1_correct == int(counts.correct.sum()) >= 1020
    assert found.top5_correct >= found.top1_correct
    (tmp_path / "evaluation.json").write_text(json.dumps(found.to_dict()))
    assert (tmp_path / "evaluation.json").stat().st_size < 5_000_000
    scores = _scores(tmp_path / "evaluation.json")
    assert (scores.num_images, scores.top1_correct) == (photos, found.top1_correct)
    shown = score_context(scores, 200)
    assert (shown["matrix"].table, shown["matrix"].side) == (None, 1000)
    assert len(shown["pairs"]) == 30
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000_000  # bytes; a matrix takes ten times that

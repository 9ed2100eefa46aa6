import contextlib
import io
import sys

import numpy as np
import pytest
import torch

from cmtvision.artefact.dense import find
from cmtvision.artefact.detections import Detections, detections, merged
from cmtvision.data import DetectionSample, Preprocess, read_detection, write_sample_scenes
from cmtvision.data.annotations.outlines import Outline, counts_to_text, encode_counts
from cmtvision.data.training.dense_dataset import DetectionDataset
from cmtvision.data.whole_image import WholeImage, original_boxes
from cmtvision.detection.metrics import IN_A_GROUP, RIGHT, WRONG, coco_figures, judged, operating_point
from cmtvision.errors import ConfigError, DataError

RGB = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3)
CLASSES = 4
SIZE = (150, 200)  # with large objects, too
NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium",
    "ar_large",
)  # fmt: skip


def random_box(generator):
    height, width = np.exp(generator.uniform(np.log(8), np.log(140), size=2))
    y, x = generator.uniform(0, 150 - height), generator.uniform(0, 200 - min(width, 199))
    return [x, y, x + min(width, 199), y + height]


def ellipse(box):
    """The mask of an ellipse in a box."""
    x0, y0, x1, y1 = box
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] + 0.5
    return ((columns - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((rows - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25


def random_data(seed, images=12):
    """Objects, and detections that are some of them moved and some of no object; class 3 has no object."""
    generator = np.random.default_rng(seed)
    samples, found = [], {}
    for number in range(images):
        boxes = [random_box(generator) for _ in range(generator.integers(0, 9))]
        labels = generator.integers(0, CLASSES - 1, size=len(boxes))
        crowd = generator.random(len(boxes)) < 0.1
        masks = [ellipse(box) for box in boxes]
        samples.append(
            DetectionSample(
                path=f"{number}.jpg", size=SIZE, boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4), labels=labels,
                crowd=crowd, area=np.array([mask.sum() for mask in masks], dtype=np.float32),
                outlines=tuple(Outline(*SIZE, counts=encode_counts(mask)) for mask in masks),
            )
        )  # fmt: skip
        moved = [
            np.clip(np.array(box) + generator.normal(0, 4, size=4), 0, [199, 149, 200, 150]) for box in boxes
            for _ in range(generator.integers(0, 3))
        ]  # fmt: skip
        moved = [box for box in moved if box[2] > box[0] + 1 and box[3] > box[1] + 1]
        moved += [random_box(generator) for _ in range(generator.integers(0, 6))]
        near = generator.random(len(moved)) < 0.7
        of = [int(np.argmin([np.abs(np.array(box) - other).sum() for other in boxes])) if boxes else 0 for box in moved]
        drawn = generator.integers(0, CLASSES, size=len(moved))
        classes = [labels[place] if close and boxes else one for place, close, one in zip(of, near, drawn, strict=True)]
        scores = np.round(generator.random(len(moved)), 1)  # with equal scores among them
        masks = np.array([ellipse(box) for box in moved], dtype=bool).reshape(-1, *SIZE)
        found[number] = detections(np.array(moved).reshape(-1, 4), scores, np.array(classes, dtype=int), masks)
    return samples, found


def pycocotools_evaluation(samples, found, kind):
    """The same by pycocotools, from its own kind of file; what it prints is thrown away."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = {"images": [{"id": n + 1, "height": SIZE[0], "width": SIZE[1]} for n in range(len(samples))],
             "categories": [{"id": n + 1} for n in range(CLASSES)], "annotations": []}  # fmt: skip
    for number, sample in enumerate(samples):
        for place, (x0, y0, x1, y1) in enumerate(sample.boxes.tolist()):
            runs = {"size": list(SIZE), "counts": counts_to_text(encode_counts(sample.outlines[place].mask()))}
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": number + 1, "bbox": [x0, y0, x1 - x0, y1 - y0],
                 "category_id": int(sample.labels[place]) + 1, "iscrowd": int(sample.crowd[place]),
                 "area": float(sample.area[place]), "segmentation": runs}
            )  # fmt: skip
    answers = []
    for number, one in found.items():
        for place, (x0, y0, x1, y1) in enumerate(one.boxes.tolist()):
            entry = {
                "image_id": number + 1,
                "category_id": int(one.labels[place]) + 1,
                "score": float(one.scores[place]),
            }
            if kind == "boxes":
                entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            else:
                entry["segmentation"] = {"size": list(SIZE), "counts": one.masks[place]}
            answers.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = truth
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(answers), "bbox" if kind == "boxes" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def pycocotools_figures(samples, found, kind):
    evaluation = pycocotools_evaluation(samples, found, kind)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = [precision[:, :, label] for label in range(CLASSES)]
    return evaluation.stats, [None if (one == -1).all() else one[one > -1].mean() for one in by_class]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("kind", ["boxes", "masks"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_figures_are_those_of_pycocotools(seed, kind):
    samples, found = random_data(seed)
    ours = coco_figures(samples, found, CLASSES, kind)
    theirs, by_class = pycocotools_figures(samples, found, kind)
    assert 0.05 < ours.ap < 0.95
    for name, expected in zip(NAMES, theirs, strict=True):
        value = getattr(ours, name)
        assert (-1 if value is None else value) == pytest.approx(expected, abs=1e-6), name
    assert ours.ap_by_class == pytest.approx(by_class, abs=1e-6)
    assert ours.ap_by_class[3] is None
    assert (ours.num_images, ours.num_objects) == (12, sum(int((~sample.crowd).sum()) for sample in samples))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_boxes_are_judged_as_pycocotools_does(seed):
    samples, found = random_data(seed)
    theirs = np.zeros((len(samples), CLASSES, 3), dtype=int)
    for one in pycocotools_evaluation(samples, found, "boxes").evalImgs:
        if one is not None and one["aRng"] == [0, 1e10]:  # of any size
            left, hit = one["dtIgnore"][0].astype(bool), one["dtMatches"][0] > 0
            theirs[one["image_id"] - 1, one["category_id"] - 1] = (~left & ~hit).sum(), (~left & hit).sum(), left.sum()
    ours = np.zeros_like(theirs)
    for number, sample in enumerate(samples):
        verdict = judged(sample, found[number])
        for place, kind in enumerate((WRONG, RIGHT, IN_A_GROUP)):
            np.add.at(ours[number, :, place], found[number].labels[verdict == kind], 1)
    assert (ours == theirs).all()
    assert (ours.sum(axis=(0, 1)) > 0).all()


def test_the_operating_point_is_where_f1_is_highest():
    samples, found = random_data(4, images=40)
    point = operating_point(samples, found)
    objects = sum(int((~sample.crowd).sum()) for sample in samples)

    def f1(score):
        shown = np.concatenate([judged(sample, found[place].above(score)) for place, sample in enumerate(samples)])
        right, wrong = int((shown == RIGHT).sum()), int((shown == WRONG).sum())
        return 2 * right / (right + wrong + objects), right / max(1, right + wrong), right / objects

    assert f1(point.score) == pytest.approx((max(f1(score / 20)[0] for score in range(1, 20)), *point[1:]))
    moved = {place: detections(one.boxes + 1000, one.scores, one.labels) for place, one in found.items()}
    assert operating_point(samples, moved) is None
    assert operating_point(samples, {place: detections([], [], []) for place in found}) is None


def test_what_several_processes_found_gives_the_same_figures_to_the_last_bit():
    samples, found = random_data(3)
    parts = [{number: found[number] for number in range(len(samples)) if number % 3 == rank} for rank in (2, 0, 1)]
    parts[1][1] = detections([[0, 0, 9, 9]], [0.9], [0])  # padding of the last batch: the later one does not count
    parts = [parts[2], parts[1], parts[0]]
    assert list(merged(parts)) == list(range(len(samples)))
    assert coco_figures(samples, merged(parts), CLASSES) == coco_figures(samples, found, CLASSES)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = write_sample_scenes(tmp_path_factory.mktemp("scenes") / "a", "detection", scenes=15).directory
    return read_detection(folder).samples


def exact(samples):
    return {
        number: detections(one.boxes, np.ones(len(one.boxes)), one.labels, one.masks())
        for number, one in enumerate(samples)
    }


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_finding_every_object_is_perfect_and_finding_nothing_is_zero(kind):
    samples, _ = random_data(4)
    perfect = coco_figures(samples, exact(samples), CLASSES, kind)
    assert (perfect.ap, perfect.ap50, perfect.ar100) == (1.0, 1.0, 1.0)
    empty = np.zeros((0, *SIZE), dtype=bool)
    nothing = {number: detections([], [], [], empty) for number in range(len(samples))}
    figures = coco_figures(samples, nothing, CLASSES, kind)
    assert (figures.ap, figures.ar100, figures.ap_by_class[3]) == (0.0, 0.0, None)


@pytest.mark.parametrize("side", [128, 200, 77])
def test_boxes_of_evaluation_inputs_lead_back_to_perfect_figures(scenes, side):
    """What a perfect network would do: read, resize, find everything, map back, count."""
    dataset = DetectionDataset(scenes, WholeImage(RGB, side))
    found = {}
    for image, target, index in (dataset[place] for place in range(len(dataset))):
        assert min(image.shape[1:]) == side
        boxes = original_boxes(target["boxes"].numpy(), target["scale"], target["original_size"])
        found[index] = detections(boxes, np.linspace(1, 0.5, len(boxes)), target["labels"].numpy())
    figures = coco_figures(scenes, found, 10)
    assert (figures.ap, figures.ar100, figures.num_objects) == (1.0, 1.0, sum(len(one.boxes) for one in scenes))


def test_boxes_of_no_object_among_no_objects_have_no_figure():
    samples, found = random_data(5)
    bare = [
        DetectionSample(one.path, SIZE, one.boxes[:0], one.labels[:0], one.crowd[:0], one.area[:0]) for one in samples
    ]
    figures = coco_figures(bare, found, CLASSES)
    assert (figures.ap, figures.ar1, figures.num_objects) == (None, None, 0)


def test_an_object_without_a_mask_counts_neither_way():
    samples, found = random_data(6)
    found = exact(samples)
    place = next(n for n, one in enumerate(samples) if len(one.boxes) > 1 and not one.crowd[0])
    one = samples[place]
    samples[place] = DetectionSample(
        one.path, SIZE, one.boxes, one.labels, one.crowd, one.area, (None, *one.outlines[1:])
    )
    figures = coco_figures(samples, found, CLASSES, "masks")
    assert figures.ap == 1.0
    assert figures.num_objects == coco_figures(samples, found, CLASSES).num_objects - 1


def test_what_cannot_be_counted_is_refused_in_one_line(monkeypatch):
    samples, found = random_data(7)
    with pytest.raises(DataError, match=r"3\.jpg: not looked at; every one of 12 images needs an answer"):
        coco_figures(samples, {number: one for number, one in found.items() if number != 3}, CLASSES)
    with pytest.raises(DataError, match="13 answers"):
        coco_figures(samples, {**found, 99: found[0]}, CLASSES)
    with pytest.raises(DataError, match=r"a class (annotated|found) is \d, expected 0 to 0"):
        coco_figures(samples, found, 1)
    boxes_only = {number: Detections(one.boxes, one.scores, one.labels) for number, one in found.items()}
    with pytest.raises(DataError, match="no masks were found, expected masks of 200 x 150"):
        coco_figures(samples, boxes_only, CLASSES, "masks")
    with pytest.raises(DataError, match="kind: got 'points'"):
        coco_figures(samples, found, CLASSES, "points")
    with pytest.raises(DataError, match="no image to count"):
        coco_figures([], {}, CLASSES)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'cmtvision\[detection\]'"):
        coco_figures(samples, found, CLASSES)


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "masks", "message"),
    [
        ([[0, 0, 1, 1]], [0.5, 0.5], [0], None, r"boxes \(1, 4\), scores \(2,\)"),
        ([[0, 0, np.nan, 1]], [0.5], [0], None, "not a finite number"),
        ([[0, 0, 1, 1]], [np.inf], [0], None, "not a finite number"),
        ([[0, 0, 1, 1]], [0.5], [0], np.zeros((2, 5, 5), dtype=bool), "2 masks of 1 boxes"),
        ([[0, 0, 1, 1]], [0.5], [0], np.zeros((5, 5), dtype=bool), r"a mask \(5,\), expected \(H, W\)"),
        ([[0, 0, 1, 1]] * 2, [0.5] * 2, [0, 0], [np.zeros((5, 5), bool), np.zeros((5, 6), bool)], "the same for all"),
    ],
)
def test_detections_are_checked(boxes, scores, labels, masks, message):
    with pytest.raises(DataError, match=message):
        detections(boxes, scores, labels, masks)


def test_a_score_that_is_no_number_is_not_left_out_in_silence():
    found = {"boxes": torch.tensor([[0.0, 0, 1, 1]]), "scores": torch.tensor([np.nan]), "labels": torch.tensor([0])}
    with pytest.raises(DataError, match="not a finite number"):
        find(lambda images: [found], torch.zeros(3, 4, 4), (1.0, 1.0), (4, 4), 0.5)

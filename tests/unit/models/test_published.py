"""Published figures against copies made by hand, and the names they claim."""

import pytest
import timm

from cmtvision.models import list_models
from cmtvision.models.peers.published import find_published, list_coco, list_published, list_transfer

# system: parameters (M), FLOPs (G), images/s on a V100, top-1, as the survey prints them
SURVEY = """
CMT-S 25.1 4.0 563 83.5 | CMT-B 45.7 9.3 285 84.5 | ResNet-50 25.6 4.1 1226 79.1 | ResNet-101 44.7 7.9 753 79.9
ResNet-152 60.2 11.5 526 80.8 | EfficientNet-B0 5.3 .39 2694 77.1 | EfficientNet-B1 7.8 .70 1662 79.1
EfficientNet-B2 9.2 1.0 1255 80.1 | EfficientNet-B3 12 1.8 732 81.6 | EfficientNet-B4 19 4.2 349 82.9
DeiT-Ti 5 1.3 2536 72.2 | DeiT-S 22 4.6 940 79.8 | DeiT-B 86 17.6 292 81.8 | T2T-14 21.5 5.2 764 81.5
T2T-19 39.2 8.9 464 81.9 | T2T-24 64.1 14.1 312 82.3 | PVT-S 24.5 3.8 820 79.8 | PVT-M 44.2 6.7 526 81.2
PVT-L 61.4 9.8 367 81.7 | TNT-S 23.8 5.2 428 81.5 | TNT-B 65.6 14.1 246 82.9 | CPVT-S 23 4.6 930 80.5
CPVT-B 88 17.6 285 82.3 | Swin-T 29 4.5 755 81.3 | Swin-S 50 8.7 437 83.0 | Swin-B 88 15.4 278 83.3
Twins-SVT-S 24 2.9 1059 81.7 | Twins-SVT-B 56 8.6 469 83.2 | Twins-SVT-L 99.2 15.1 288 83.7
CeiT-T 6.4 1.2 - 76.4 | CeiT-S 24.2 4.5 - 82.0 | CvT-13 20.0 4.5 - 81.6 | CvT-21 31.6 7.1 - 82.5
"""
TOP1 = {
    "cmt_ti": 79.1, "cmt_xs": 81.8, "cmt_s": 83.5, "cmt_b": 84.5, "pvt_v1_tiny": 75.1, "cvt_21": 82.5,
    "deit_tiny_distilled_patch16_224": 74.5, "deit_small_distilled_patch16_224": 81.2,
    "deit_base_distilled_patch16_224": 83.4, "vit_gigantic_patch14_224": 90.45, "cmt_ti_kecam": 78.94,
}  # fmt: skip


def number(text):
    return None if text == "-" else float(text)


def test_the_survey_is_copied_without_a_slip():
    rows = {r.system: r for r in list_published() if r.source.startswith("survey")}
    cells = [cell.split() for line in SURVEY.strip().splitlines() for cell in line.split("|")]
    assert len(cells) == len(rows)
    for system, *figures in cells:
        row = rows[system]
        found = [row.parameters_m, row.gflops, row.images_per_second_v100, row.top1]
        assert found == [number(f) for f in figures], system


@pytest.mark.parametrize(("name", "top1"), TOP1.items())
def test_accuracy_by_name(name, top1):
    assert find_published(name).top1 == top1


def test_reimplementations_and_authors_have_rows_of_their_own():
    found = {(r.system, r.top1) for r in list_published() if r.parameters_m is None}
    assert {("CMT-S of MindCV", 83.24), ("CMT-Ti of Keras at 224 px", 80.73), ("DeiT-S", 79.9)} <= found


def test_sources_are_joined_figure_by_figure_and_named():
    cmt_s = find_published("cmt_s.in1k")
    assert (cmt_s.parameters_m, cmt_s.gflops, cmt_s.images_per_second_v100) == (25.14, 4.04, 563)
    first, second = cmt_s.source.split("; ")
    assert first.startswith("top-1, parameters, FLOPs: CMT paper")
    assert second.startswith("images/s on a V100: survey")
    assert find_published("swin_tiny_patch4_window7_224").source == "survey table of ImageNet results"


@pytest.mark.parametrize("name", ["cmt_nano", "vit_nano", "cvt_w24", "no_such_model", ""])
def test_what_is_not_known_is_none(name):
    assert find_published(name) is None


def test_every_name_makes_a_network():
    names = {row.model for row in [*list_published(), *list_transfer(), *list_coco()]} - {None}
    assert [name for name in names if not timm.is_model(name)] == []
    nameless = {row.system for row in list_published() if row.model is None}
    assert nameless == {
        *(f"EfficientNet-B{n}" for n in range(1, 5)),  # the sources do not print their image sizes; timm has its own
        "T2T-14",
        "T2T-19",
        "T2T-24",
        "CPVT-S",
        "CPVT-B",
        "CMT-S of MindCV",
        "CMT-Ti of Keras at 224 px",
    }
    assert len(names & set(list_models())) > 10


def test_every_row_has_a_source_and_figures_that_can_be_true():
    for row in list_published():
        assert row.source
        assert 65 < row.top1 < 91
        assert row.gflops is None or row.gflops < row.parameters_m


def test_transfer_and_detection():
    transfer = {r.system: (r.cifar10, r.cifar100, r.cars, r.flowers, r.pets) for r in list_transfer()}
    assert transfer == {
        "CMT-S": (99.2, 91.7, 94.4, 98.7, 95.2),
        "CeiT-S": (99.1, 90.8, 94.1, 98.6, 94.9),
        "DeiT-B": (99.1, 90.8, 92.1, 98.4, None),
        "EfficientNet-B7": (98.9, 91.7, 94.7, 98.8, 95.4),
        "ViT-B/16": (98.1, 87.1, None, 89.5, 93.8),
    }
    coco = {(r.detector, r.system): (r.gflops, r.box_ap, r.mask_ap) for r in list_coco()}
    assert coco == {
        ("RetinaNet", "CMT-S"): (231, 44.3, None),
        ("RetinaNet", "PVT-S"): (None, 40.4, None),
        ("RetinaNet", "Swin-T"): (None, 41.5, None),
        ("RetinaNet", "Twins-PCPVT-S"): (None, 43.0, None),
        ("RetinaNet", "ResNet-101"): (None, 38.5, None),
        ("Mask R-CNN", "CMT-S"): (249, 44.6, 40.7),
        ("Mask R-CNN", "Swin-T"): (None, 42.2, 39.1),
    }
    ours = next(r for r in list_coco() if r.detector == "RetinaNet" and r.system == "CMT-S")
    sizes = (ours.box_ap50, ours.box_ap75, ours.box_ap_small, ours.box_ap_medium, ours.box_ap_large)
    assert sizes == (65.5, 47.5, 27.1, 48.3, 59.1)
    masks = next(r for r in list_coco() if r.mask_ap50)
    assert (masks.box_ap50, masks.box_ap75, masks.mask_ap50, masks.mask_ap75) == (66.8, 48.9, 63.9, 43.4)


def test_a_figure_at_another_size_is_not_that_of_the_model():
    """timm's convnext_tiny is made for 224 px, and was measured by timm at 288."""
    assert find_published("convnext_tiny") is None
    assert find_published("mobilenetv4_conv_medium").top1 == 79.928
    sizes = {row.img_size for row in list_published() if row.model == "convnext_tiny"}
    assert sizes == {288}

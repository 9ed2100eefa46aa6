"""Distillation: each kind against its equation, what the teacher sees, and what must not change because of it."""

import random
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from cmtvision.artefact import Artefact, read_artefact, write_artefact
from cmtvision.data import Preprocess
from cmtvision.engine.distillation.distill import build_distiller
from cmtvision.engine.distillation.teacher import Teacher
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models import create_model
from cmtvision.recipe import Recipe
from cmtvision.weights import write_safetensors

CLASSES = ["ant", "bee", "cat"]
STUDENT = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)


def recipe(teacher, multi_label=False, **distill):
    return Recipe.model_validate(
        {
            "model": {"name": "cmt_nano", "img_size": 32},
            "preprocess": {"mean": STUDENT.mean, "std": STUDENT.std},
            "data": {"multi_label": multi_label},
            "loss": {"name": "bce" if multi_label else "cross_entropy"},
            "distill": {"teacher": None if teacher is None else str(teacher), **distill},
        }
    )


def distiller(made, student, classes=CLASSES):
    return build_distiller(made, classes, student, (3, 32, 32), "cpu")


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return create_model("cmt_nano", num_classes=3, img_size=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run's folder, with its own size and normalisation."""
    torch.manual_seed(1)
    model = create_model("cmt_nano", num_classes=3, img_size=64).eval()
    preprocess = Preprocess((64, 64), 1.0, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    artefact = Artefact("cmt_nano", {"img_size": 64}, CLASSES, preprocess, model=model)
    return write_artefact(tmp_path_factory.mktemp("teacher") / "run", artefact)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A timm model's weights in a file, for the three classes."""
    torch.manual_seed(2)
    model = timm.create_model("resnet10t", num_classes=3)
    path = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    write_safetensors(model.state_dict(), path, {})
    return path, model.eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_without_a_teacher_there_is_none(student):
    assert distiller(recipe(None), student) is None


def test_the_teacher_sees_the_same_photo_in_its_own_normalisation_and_size(student, run, images):
    teacher = distiller(recipe(run), student).teacher
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = teacher.images((pixels - 0.5) / 0.5)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    expected = nn.functional.interpolate((pixels - mean) / std, (64, 64), mode="bilinear")
    assert torch.allclose(seen, expected, atol=1e-5)


def test_equal_normalisation_leaves_the_images_alone(resnet, images):
    same = Teacher("same", resnet[1], STUDENT, STUDENT, fixed_size=False)
    assert same.images(images) is images


def test_soft_equals_its_equation(student, run, images):
    part = distiller(recipe(run, temperature=2.0), student)
    logits, features = part.student_forward(student.eval(), images)
    assert features is None
    wanted = part.teacher.logits(images).double()
    p, q = (wanted / 2).softmax(1), (logits.double() / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    assert part(images, logits, None).item() == pytest.approx(expected.item(), rel=1e-5)
    assert part(images, wanted.float(), None).item() == pytest.approx(0, abs=1e-6)


def test_hard_is_cross_entropy_with_the_teachers_decision(student, run, images):
    part = distiller(recipe(run, kind="hard"), student)
    logits = torch.randn(4, 3)
    decided = part.teacher.logits(images).argmax(1)
    expected = -logits.double().log_softmax(1)[range(4), decided].mean()
    assert part(images, logits, None).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_several_labels_are_matched_one_by_one(student, resnet, images, kind):
    part = distiller(recipe("resnet10t", True, weights=str(resnet[0]), kind=kind, temperature=2.0), student)
    logits = torch.randn(4, 3)
    wanted = part.teacher.logits(images).double()
    if kind == "hard":
        yes = (wanted.sigmoid() >= 0.5).double()
        q = logits.double().sigmoid()
        expected = -(yes * q.log() + (1 - yes) * (1 - q).log()).mean()
    else:
        p, q = (wanted / 2).sigmoid(), (logits.double() / 2).sigmoid()
        expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert part(images, logits, None).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_timm_teacher_gives_its_own_logits(student, resnet, images):
    path, model = resnet
    part = distiller(recipe("resnet10t", weights=str(path)), student)
    teacher = part.teacher
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = model((images * 0.5 + 0.5 - mean) / std)
    assert torch.allclose(teacher.logits(images), expected, atol=1e-4)


def test_features_are_projected_and_compared_place_by_place(student, resnet, images):
    part = distiller(recipe("resnet10t", weights=str(resnet[0]), kind="feature"), student)
    logits, features = part.student_forward(student.eval(), images)
    assert torch.equal(logits, student(images))
    assert features.shape[1] == part.projection.in_channels
    wanted = part.teacher.features(images)
    assert wanted.shape[1] == part.projection.out_channels == 512
    ours = torch.einsum("bchw,dc->bdhw", features, part.projection.weight[:, :, 0, 0])
    ours = ours + part.projection.bias[:, None, None]
    wanted = nn.functional.interpolate(wanted, ours.shape[2:], mode="bilinear", antialias=True)
    cosine = (ours * wanted).sum(1) / (ours.norm(dim=1) * wanted.norm(dim=1))
    assert part(images, logits, features).item() == pytest.approx((1 - cosine).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_tokens_and_channels_last_maps_become_grids(name, student, images):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, depths=(1, 1, 1, 1)) if "swin" in name else None
    model = model or timm.create_model(name, num_classes=0, depth=1)
    own = Preprocess((224, 224), 0.9, "bicubic", (0.5,) * 3, (0.5,) * 3)
    teacher = Teacher(name, model, own, STUDENT, fixed_size=True)
    features = teacher.features(images)
    side = 7 if "swin" in name else 14
    assert features.shape == (4, model.num_features, side, side)
    with torch.no_grad():
        raw = model.forward_features(teacher.images(images))
    first_row = raw[:, 0, 1] if raw.ndim == 4 else raw[:, model.num_prefix_tokens + 1]
    assert torch.equal(features[:, :, 0, 1], first_row)


@pytest.mark.parametrize("kind", ["soft", "hard", "feature"])
def test_the_teacher_takes_no_part_in_training(kind, student, run, images):
    part = distiller(recipe(run, kind=kind), student)
    names = ["projection.weight", "projection.bias"] if kind == "feature" else []
    assert [name for name, _ in part.named_parameters()] == names
    assert list(part.state_dict()) == names
    before = {name: value.clone() for name, value in part.teacher.model.state_dict().items()}
    part.train()
    assert not part.teacher.model.training
    student.zero_grad()
    logits, features = part.student_forward(student.train(), images)
    part(images, logits, features).backward()
    assert all(parameter.grad is None for parameter in part.teacher.model.parameters())
    after = part.teacher.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert all(parameter.grad.any() for parameter in part.parameters())


def test_building_changes_neither_random_state_nor_student(student, run):
    student.train()
    student.stem.eval()
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    modes = [module.training for module in student.modules()]
    states = torch.get_rng_state(), random.getstate()
    part = distiller(recipe(run, kind="feature"), student)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    torch.manual_seed(99)
    again = distiller(recipe(run, kind="feature"), student)
    assert torch.equal(part.projection.weight, again.projection.weight)
    student.train()


def test_the_same_classes_in_another_order_are_put_in_order(student, run, images):
    straight = distiller(recipe(run), student).teacher.logits(images)
    turned = distiller(recipe(run), student, ["cat", "ant", "bee"]).teacher.logits(images)
    assert torch.equal(turned, straight[:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("teacher", "distill", "classes", "words"),
    [
        ("RUN", {}, ["ant", "bee", "dog"], r"knows the classes ant, bee, cat, the data has ant, bee, dog"),
        ("resnet10t", {}, CLASSES, r"knows 1000 classes, the data has 3"),
        ("resnet10t", {"weights": "FILE"}, ["a", "b"], r"knows 3 classes, the data has 2"),
        ("resnet10tt", {}, CLASSES, r"unknown model 'resnet10tt'; did you mean resnet10t"),
        ("resnet18.a1_in1kk", {}, CLASSES, r"did you mean resnet18\.a1_in1k"),
        ("resnet10t", {"weights": None}, CLASSES, r"a teacher needs weights"),
        ("cmt_nano", {}, CLASSES, r"has no released weights"),
        ("RUN", {"weights": "FILE"}, CLASSES, r"has its own; leave distill\.weights out"),
        ("EMPTY", {}, CLASSES, r"no model\.json in it"),
        ("runs/techer", {}, CLASSES, r"runs/techer: no such folder"),
    ],
)
def test_a_teacher_that_cannot_teach_is_one_line(teacher, distill, classes, words, student, run, resnet, tmp_path):
    places = {"RUN": run, "FILE": resnet[0], "EMPTY": tmp_path}
    made = recipe(places.get(teacher, teacher), **{k: str(places.get(v, v)) if v else v for k, v in distill.items()})
    with pytest.raises(ConfigError, match=words) as caught:
        distiller(made, student, classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("train", {"compile": True}, r"train\.compile"),
        ("train", {"strategy": "fsdp"}, r"train\.strategy"),
        ("model", {"freeze": "backbone"}, r"model\.freeze"),
    ],
)
def test_what_feature_distillation_would_leave_undone_is_refused(section, change, words, student, run):
    made = recipe(run, kind="feature")
    made = made.model_copy(update={section: getattr(made, section).model_copy(update=change)})
    with pytest.raises(ConfigError, match=words):
        distiller(made, student)


def test_tasks_and_channels_must_agree(student, run, tmp_path):
    several = write_artefact(tmp_path / "several", replace(read_artefact(run), task="multi-label"))
    with pytest.raises(ConfigError, match="it is a multi-label model, the data is single-label"):
        distiller(recipe(several), student)
    made = recipe(run)
    gray = made.model_copy(
        update={
            "model": made.model.model_copy(update={"in_chans": 1}),
            "preprocess": made.preprocess.model_copy(update={"mean": (0.5,), "std": (0.5,)}),
        }
    )
    with pytest.raises(ConfigError, match=r"it sees 3 channel\(s\), the student 1"):
        distiller(gray, create_model("cmt_nano", num_classes=3, img_size=32, in_chans=1))


def test_a_gray_student_has_a_gray_timm_teacher(resnet):
    made = recipe("resnet10t", weights=str(resnet[0]))
    gray = made.model_copy(
        update={
            "model": made.model.model_copy(update={"in_chans": 1}),
            "preprocess": made.preprocess.model_copy(update={"mean": (0.5,), "std": (0.5,)}),
        }
    )
    part = distiller(gray, create_model("cmt_nano", num_classes=3, img_size=32, in_chans=1))
    pixels = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (sum(resnet[1].pretrained_cfg[key]) / 3 for key in ("mean", "std"))
    assert torch.allclose(part.teacher.images((pixels - 0.5) / 0.5), (pixels - mean) / std, atol=1e-5)
    assert part.teacher.logits((pixels - 0.5) / 0.5).shape == (2, 3)


def test_feature_distillation_needs_no_common_classes(student, run, images):
    part = distiller(recipe(run, kind="feature"), student, ["x", "y", "z"])
    assert part(images, *part.student_forward(student, images)) >= 0


def test_weights_of_another_model_and_torn_ones_are_named(student, resnet, tmp_path):
    with pytest.raises(CheckpointError, match=r"do not fit resnet14t"):
        distiller(recipe("resnet14t", weights=str(resnet[0])), student)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(resnet[0].read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"torn\.safetensors"):
        distiller(recipe("resnet10t", weights=str(torn)), student)

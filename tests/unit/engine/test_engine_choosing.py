"""What `train` chooses for real folders of photos, and the plan that it says: at most ten lines, with the reasons."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants as hub
from PIL import Image, ImageFilter

from cmtvision.cli.plan_lines import plan_lines
from cmtvision.data import read_dataset
from cmtvision.data.sample import write_sample_data
from cmtvision.engine.choosing import look as module
from cmtvision.engine.choosing.choose import settle_recipe
from cmtvision.engine.choosing.look import Speed, look_at_photos
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.models import create_model
from cmtvision.recipe import ModelSection, Recipe, dump_recipe, load_recipe
from cmtvision.weights import write_safetensors
from cmtvision.weights.fetch import FetchError

CPU = [
    "train.device=cpu",
    "train.threads=1",
]  # beside other tests: two of them must not wait for each other's threads


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    """A step is timed once, since this machine's figures are not what is tested; and nothing is to be had."""
    monkeypatch.setattr(module, "_STEPS", 1)
    monkeypatch.setattr(module, "_STEP_SECONDS", 0.0)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def garments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("garments")
    write_sample_data(folder / "all")
    for label in (folder / "all" / "train").iterdir():
        (folder / "photos" / label.name).mkdir(parents=True)
        for photo in sorted(label.iterdir())[:60]:
            photo.rename(folder / "photos" / label.name / photo.name)
    return folder / "photos"


def scene(width, height, seed=0):
    """A picture full of detail: noise at every scale."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (4, 16, 64, 256, 1024):
        shape = (min(cells, height), min(cells, width), 3)
        layer = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        total += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray((total / 5).astype(np.uint8))


def folder_of(root: Path, picture: Image.Image, classes: int, each: int, suffix=".jpg") -> Path:
    """class folders of links to the same file, so that a hundred thousand photos take no space."""
    root.mkdir()
    first = root.parent / f"first{suffix}"
    picture.save(first)
    for label in range(classes):
        original = first.with_stem(f"original{label}")  # a file system allows some 65,000 links to a file
        shutil.copy(first, original)
        (root / f"class{label:04}").mkdir()
        for number in range(each):
            os.link(original, root / f"class{label:04}" / f"{number:05}{suffix}")
    return root


def settled(folder, *settings, **more):
    index = read_dataset(folder, verify=False) if isinstance(folder, Path) else folder
    chosen = settle_recipe(None, [*CPU, *settings], index, **more)
    lines = plan_lines(chosen, index, "photos", Path("runs/x"))
    assert len(lines) <= 10
    assert Recipe.model_validate(yaml.safe_load(dump_recipe(chosen.recipe))) == chosen.recipe  # a choice is plain data
    return chosen, "\n".join(lines)


@pytest.mark.slow
def test_thirty_photos_in_two_classes(tmp_path):
    chosen, said = settled(folder_of(tmp_path / "few", scene(300, 200), 2, 15), minutes=5.0)
    assert chosen.recipe.model.name == "cmt_nano"
    assert chosen.recipe.train.batch_size == 8
    assert chosen.recipe.train.max_minutes == 5.0
    assert "24 to train on" in said
    assert "always guessing the commonest class scores " in said


@pytest.mark.slow
def test_a_hundred_thousand_photos(tmp_path):
    photos = read_dataset(folder_of(tmp_path / "many", scene(90, 80), 20, 5000), verify=False)
    chosen, said = settled(photos)
    assert chosen.recipe.schedule.epochs < 100
    assert chosen.seconds > 60
    assert chosen.is_long == ("--minutes" in said)
    bounded, said = settled(photos, minutes=5.0)
    assert bounded.recipe.schedule.epochs <= chosen.recipe.schedule.epochs
    assert "--minutes" not in said
    assert "at most" in said


@pytest.mark.slow
def test_a_thousand_classes(tmp_path):
    chosen, said = settled(folder_of(tmp_path / "classes", scene(100, 100), 1000, 3))
    assert "1000 classes" in said
    assert chosen.recipe.data.class_balance == "none"


@pytest.mark.slow
def test_photos_of_twenty_pixels(tmp_path):
    chosen, said = settled(folder_of(tmp_path / "icons", scene(24, 20), 3, 40, ".png"))
    assert chosen.recipe.model.img_size == 32
    assert "no larger than 20 px" in said


@pytest.mark.slow
def test_photos_of_twenty_megapixels_are_looked_at_in_seconds_and_shrunk_as_they_are_read(tmp_path):
    chosen, said = settled(folder_of(tmp_path / "large", scene(5200, 3900), 2, 60))
    assert chosen.seen.side == 3900
    assert chosen.recipe.data.shrink * chosen.recipe.model.img_size < 400
    assert chosen.recipe.data.cache
    assert "half of them 3900 px or smaller" in said


def test_a_blurred_photo_has_as_little_detail_as_a_small_one(tmp_path):
    sharp, blurred = scene(400, 400), scene(400, 400).filter(ImageFilter.GaussianBlur(12))
    found = [
        look_at_photos(
            read_dataset(folder_of(tmp_path / str(place), picture, 2, 3, f"{place}.png"), verify=False).train
        )
        for place, picture in enumerate((sharp, blurred))
    ]
    assert [side for side, _, _ in found] == [400, 400]
    assert found[1][1] < 100 < found[0][1]


def test_damaged_photos_are_passed_over_and_nothing_but_damaged_ones_is_an_error(tmp_path):
    folder = folder_of(tmp_path / "photos", scene(64, 64), 2, 4)
    samples = read_dataset(folder, verify=False).train
    (folder / "class0000" / "torn.jpg").write_bytes((folder / "class0000" / "00000.jpg").read_bytes()[:300])
    torn = [samples[0]._replace(path=folder / "class0000" / "torn.jpg")]
    assert look_at_photos([*torn, *samples])[0] == 64
    with pytest.raises(DataError, match=r"none of 1 photos could be read, .*torn\.jpg"):
        look_at_photos(torn)


@pytest.mark.slow
def test_settings_that_were_given_are_never_chosen(garments):
    given = ["optim.lr=0.01", "model.img_size=48", "schedule.epochs=7", "augment.mixup=0.5", "seed=3"]
    chosen, said = settled(garments, *given)
    assert chosen.recipe.optim.lr == 0.01
    assert (chosen.recipe.model.img_size, chosen.recipe.schedule.epochs, chosen.recipe.seed) == (48, 7, 3)
    assert chosen.recipe.augment.mixup == 0.5
    assert "chosen: 7 epochs" in said
    assert not {choice.key for choice in chosen.choices} & {setting.partition("=")[0] for setting in given}


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        ["augment.random_resized_crop=true"], ["augment.crop_padding=2"], ["augment.color_jitter=0.4"],
        ["schedule.warmup_epochs=60"], ["data.multi_label=true"], ["model.img_size=null"], ["data.cache=false"],
        ["model.name=cmt_ti", "model.img_size=null"], ["train.accumulate=4", "name=mine", "description=words"],
    ],
)  # fmt: skip
def test_whatever_is_given_the_rest_goes_together_with_it(garments, given):
    chosen, _ = settled(read_dataset(garments, verify=False, multi_label="data.multi_label=true" in given), *given)
    flat = {f"{section}.{key}": value for section, values in chosen.recipe.model_dump().items()
            if isinstance(values, dict) for key, value in values.items()}  # fmt: skip
    flat |= {"name": chosen.recipe.name, "description": chosen.recipe.description}
    for key, _, value in (setting.partition("=") for setting in given):
        assert value == "null" or flat[key] == yaml.safe_load(value)


@pytest.mark.slow
def test_a_network_keeps_its_own_size_where_it_takes_no_small_photos(garments):
    index = read_dataset(garments, verify=False)
    assert settle_recipe(None, [*CPU, "model.name=inception_v3"], index).recipe.model.img_size == (299, 299)
    assert settle_recipe(None, [*CPU, "model.name=vit_tiny_patch16_224"], index).recipe.model.img_size == (224, 224)
    assert settle_recipe(None, [*CPU, "model.name=resnet10t"], index).recipe.model.img_size == 32


def test_reasons_are_kept_with_the_recipe(garments):
    chosen, said = settled(garments)
    assert chosen.recipe.name == "chosen"
    assert "model.img_size 32: half of the photos are no larger than 28 px." in chosen.recipe.description
    assert "half of the photos are no larger than 28 px" in said


@pytest.mark.slow
def test_a_written_recipe_keeps_what_it_says_and_its_epochs_are_fitted_to_a_time(garments):
    index = read_dataset(garments, verify=False)
    written = load_recipe("demo", CPU)
    plain = settle_recipe("demo", CPU, index)
    assert plain.recipe == written
    assert plain.seconds > 0
    fitted = settle_recipe("demo", CPU, index, minutes=60.0).recipe
    assert fitted.train.max_minutes == 60.0
    assert fitted.schedule.epochs > written.schedule.epochs
    share = fitted.schedule.epochs / written.schedule.epochs
    assert fitted.schedule.warmup_epochs == pytest.approx(written.schedule.warmup_epochs * share, rel=0.01)
    kept = settle_recipe("demo", [*CPU, "schedule.epochs=3"], index, minutes=60.0).recipe
    assert kept.schedule.epochs == 3
    nano = [*CPU, "model.name=cmt_nano", "model.img_size=32"]
    stepped = settle_recipe("imagenet_cmt_s", nano, index, minutes=5.0).recipe
    assert (stepped.schedule.step, stepped.schedule.late) == ("step", False)


@pytest.mark.slow
def test_weights_of_ones_own_bring_their_network_along(garments, tmp_path):
    file = tmp_path / "weights.safetensors"
    write_safetensors(create_model("cmt_ti", num_classes=4).state_dict(), file, {})
    chosen, said = settled(garments, f"model.weights={file}")
    assert chosen.recipe.model.name == "cmt_ti"
    assert chosen.recipe.optim.layer_decay is not None
    assert f"from {file}" in said
    frozen, _ = settled(garments, f"model.weights={file}", "model.freeze=backbone")
    assert frozen.recipe.optim.layer_decay is None


def test_a_network_that_cannot_be_measured_is_one_line(garments):
    index = read_dataset(garments, verify=False)
    with pytest.raises(ConfigError, match="unknown model 'cmt_tii'; did you mean cmt_ti"):
        settle_recipe(None, [*CPU, "model.name=cmt_tii"], index)
    with pytest.raises(CheckpointError, match=r"nothere\.pth: no such file"):
        settle_recipe(None, [*CPU, "model.weights=nothere.pth"], index)
    speed = Speed(3, torch.device("cpu"), ModelSection(), bf16=False)
    with pytest.raises(ConfigError, match="inception_v3 cannot train on photos of 32 px"):
        speed.measure("inception_v3", 32)


def test_what_memory_has_no_room_for_is_measured_with_fewer_photos_or_estimated(monkeypatch):
    speed, tried = Speed(3, torch.device("cpu"), ModelSection(), bf16=False), []

    def steps(name, size, photos, bf16):  # as a GPU would: no test machine runs out of memory on purpose
        tried.append(photos)
        if photos > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 100.0

    monkeypatch.setattr(speed, "_steps", steps)
    assert speed.measure("cmt_nano", 64) == 100.0
    assert tried == [32, 16, 8, 4, 2]
    monkeypatch.setattr("cmtvision.engine.choosing.look.free_bytes", lambda device: 10_000_000)
    assert speed.measure("cmt_b", 1024) < 1
    assert tried == [32, 16, 8, 4, 2]  # not tried at all


def test_a_written_recipe_is_not_refused_because_it_cannot_be_measured(garments):
    index = read_dataset(garments, verify=False)
    chosen = settle_recipe("demo", [*CPU, "model.name=inception_v3", "model.img_size=32"], index)
    assert (chosen.seconds, chosen.recipe.model.name) == (0.0, "inception_v3")
    assert settle_recipe(chosen.recipe.name, [*CPU, "model.name=inception_v3", "model.img_size=32"], index, minutes=9.0)


def test_what_was_not_measured_is_estimated_from_the_nearest_that_was():
    speed = Speed(3, torch.device("cpu"), ModelSection(), bf16=False)
    speed.measured = {("cmt_nano", 64): 400.0, ("cmt_ti", 160): 20.0}
    assert speed("cmt_nano", 32) == pytest.approx(1600.0)
    assert speed("cmt_ti", 128) == pytest.approx(31.25)
    assert set(speed.measured) == {("cmt_nano", 64), ("cmt_ti", 160)}


@pytest.mark.slow
def test_a_limit_is_a_limit_however_it_is_given(garments):
    index = read_dataset(garments, verify=False)
    with pytest.raises(ConfigError, match=r"--minutes and --set train.max_minutes: both given"):
        settle_recipe(None, [*CPU, "train.max_minutes=3"], index, minutes=5.0)
    chosen = settle_recipe(None, [*CPU, "train.max_minutes=0.5"], index)
    assert chosen.recipe.train.max_minutes == 0.5
    assert chosen.seconds <= 30
    assert settle_recipe(None, CPU, index, minutes=100 / 3).recipe.train.max_minutes == 100 / 3


def test_weights_whose_download_breaks_are_done_without(tmp_path, monkeypatch):
    sharp = folder_of(tmp_path / "sharp", Image.effect_noise((200, 200), 90).convert("RGB"), 2, 30)
    monkeypatch.setattr("cmtvision.engine.choosing.look.released_weights", lambda names: (names, ""))

    def broken(name):  # the server answers, and then the line is cut
        raise FetchError(f"{name}: the connection broke", "put it there")

    monkeypatch.setattr("cmtvision.engine.choosing.choose.fetch_weights", broken)
    chosen, said = settled(sharp)
    assert chosen.recipe.model.weights is None
    assert "the connection broke" in said

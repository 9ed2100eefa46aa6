"""Where figures go besides metrics.csv."""

from importlib.util import find_spec

import pytest
from engine_photos import TINY, write_photos
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmtvision.engine import fit
from cmtvision.engine.callbacks.tracking import build_loggers
from cmtvision.errors import ConfigError
from cmtvision.recipe import load_recipe


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_names_its_extra(package, tmp_path):
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=rf"{package} is not installed; pip install 'cmtvision\[track\]'"):
        build_loggers(load_recipe("demo", [f"train.loggers=[tensorboard, {package}]"]), tmp_path)


@pytest.mark.slow
def test_tensorboard_shows_what_is_watched(tmp_path):
    photos = write_photos(tmp_path / "photos")
    result = fit(load_recipe("demo", [*TINY]), photos, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train_loss", "val_loss", "val_top1", "lr", "gradient_norm", "ema_distance", "data_wait"} <= tags
    assert {"step/loss", "step/lr", "step/gradient_norm", "step/images_per_second", "step/data_wait"} <= tags
    assert events.Scalars("train_loss")[-1].value == pytest.approx(result.metrics["train_loss"], rel=1e-6)
    assert result.metrics["gradient_norm"] > 0
    assert 0 < result.metrics["ema_distance"] < 1
    assert 0 <= result.metrics["data_wait"] <= 1


def test_no_logger_is_a_choice_too(tmp_path):
    photos = write_photos(tmp_path / "photos")
    fit(load_recipe("demo", [*TINY, "schedule.epochs=1", "train.loggers=[]"]), photos, tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "run" / "metrics.csv").is_file()

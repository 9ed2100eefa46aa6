"""Where figures go besides metrics.csv: TensorBoard, Weights & Biases, MLflow, as the recipe names them."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from cmtvision.artefact.run.names import TENSORBOARD_FOLDER
from cmtvision.errors import ConfigError
from cmtvision.recipe import Recipe


def build_loggers(recipe: Recipe, out: Path) -> list[Logger]:
    """The recipe's loggers; all keep their files in the run folder.

    Raises:
        ConfigError: a package that is not installed, or a service that refuses.
    """
    return [_BUILDERS[name](recipe, out) for name in dict.fromkeys(recipe.train.loggers)]


def _tensorboard(_: Recipe, out: Path) -> Logger:
    return TensorBoardLogger(str(out), name="", version=TENSORBOARD_FOLDER)


def _wandb(recipe: Recipe, out: Path) -> Logger:
    _need("wandb")
    from pytorch_lightning.loggers import WandbLogger

    try:
        logger = WandbLogger(
            project="cmtvision", name=out.name, save_dir=str(out), config=recipe.model_dump(mode="json")
        )
        _ = logger.experiment  # signs in now, not after the data has been read
    except Exception as error:  # wandb raises classes of its own, and others from its network
        raise ConfigError(
            f"Weights & Biases: {' '.join(str(error).split())[:200]}; run `wandb login`, or set WANDB_MODE=offline"
        ) from error
    return logger


def _mlflow(recipe: Recipe, out: Path) -> Logger:
    _need("mlflow")
    from pytorch_lightning.loggers import MLFlowLogger

    try:
        logger = MLFlowLogger(
            experiment_name="cmtvision", run_name=out.name, tracking_uri=_tracking_uri(out), save_dir=None
        )
        _ = logger.experiment
    except Exception as error:  # mlflow's own exceptions, and those of its server's network
        raise ConfigError(f"MLflow: {' '.join(str(error).split())[:200]}; check MLFLOW_TRACKING_URI") from error
    return logger


def _tracking_uri(out: Path) -> str:
    import os

    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').resolve()}"


def _need(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ConfigError(f"train.loggers: {package} is not installed; pip install 'cmtvision[track]'")


_BUILDERS: dict[str, Any] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}

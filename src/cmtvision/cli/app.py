"""The table of commands. Light: command modules import torch only inside their functions."""

import time
from collections.abc import Callable
from typing import Annotated, TypeAlias

import typer

from cmtvision.cli.commands.ablate import ablate
from cmtvision.cli.commands.bench import bench
from cmtvision.cli.commands.calibrate import calibrate
from cmtvision.cli.commands.check_data import check_data
from cmtvision.cli.commands.compare import compare
from cmtvision.cli.commands.compare_runs import compare_runs
from cmtvision.cli.commands.convert import convert
from cmtvision.cli.commands.detect import COMMANDS as DETECT
from cmtvision.cli.commands.doctor import doctor
from cmtvision.cli.commands.evaluate import evaluate
from cmtvision.cli.commands.explain import explain
from cmtvision.cli.commands.export import export
from cmtvision.cli.commands.info import info
from cmtvision.cli.commands.lr_find import lr_find
from cmtvision.cli.commands.models import models
from cmtvision.cli.commands.predict import predict
from cmtvision.cli.commands.quantize import quantize
from cmtvision.cli.commands.recipes import recipes
from cmtvision.cli.commands.report import report
from cmtvision.cli.commands.sample_data import sample_data
from cmtvision.cli.commands.scale import scale
from cmtvision.cli.commands.segment import COMMANDS as SEGMENT
from cmtvision.cli.commands.shard import shard
from cmtvision.cli.commands.train import train
from cmtvision.cli.commands.tune import tune
from cmtvision.cli.commands.verify import verify
from cmtvision.cli.faults import interruptible
from cmtvision.cli.output import BEGAN, result

app = typer.Typer(
    name="cmtvision",
    help="CMT (CNN meets vision transformer): train on your images, evaluate, predict, look inside.",
    epilog="First steps: cmtvision sample-data photos && cmtvision train photos",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every warning.")] = False,
) -> None:
    context.meta[BEGAN] = time.perf_counter()
    if version:
        from cmtvision import __version__

        result(f"cmtvision {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        result(context.get_help())
        raise typer.Exit(2)


_Commands: TypeAlias = dict[str, tuple[Callable[..., None], str]]
_COMMANDS: _Commands = {
    "sample-data": (sample_data, "Write real images to start with."),
    "shard": (shard, "Write images as tar shards."),
    "check-data": (check_data, "Find what is wrong with your images."),
    "train": (train, "Train a classifier on your images."),
    "tune": (tune, "Search for good recipe settings."),
    "lr-find": (lr_find, "Find a learning rate by a short sweep."),
    "eval": (evaluate, "Measure a trained model on images."),
    "calibrate": (calibrate, "Make a model's probabilities honest."),
    "report": (report, "Write a page on how far to trust a model."),
    "compare-runs": (compare_runs, "Compare two trained models image by image."),
    "predict": (predict, "Predict the classes of images."),
    "explain": (explain, "Draw what a model looked at in an image."),
    "export": (export, "Write a model for ONNX, OpenVINO or PyTorch, verified."),
    "quantize": (quantize, "Make an 8-bit model within an accuracy budget."),
    "verify": (verify, "Compare two models on real images."),
    "bench": (bench, "Measure speed and memory on this machine."),
    "compare": (compare, "Compare models: cost, speed, accuracy."),
    "ablate": (ablate, "Remove one idea of CMT at a time, and train."),
    "scale": (scale, "Make a CMT of another size by the paper's law."),
    "info": (info, "Show a model's layers and what they cost."),
    "models": (models, "List the models."),
    "recipes": (recipes, "List recipes, or show one."),
    "convert": (convert, "Convert weights between files."),
    "doctor": (doctor, "Check this machine and its packages."),
}
_DETECT = "Find objects in images: train, eval and predict as for classifiers, on images with boxes."
_SEGMENT = "Say what each pixel of an image is: train, eval and predict as for classifiers, on images with masks."
_GROUPS: dict[str, tuple[_Commands, str, str]] = {
    "detect": (DETECT, "Find objects: detect train, eval, predict.", _DETECT),
    "segment": (SEGMENT, "Label pixels: segment train, eval, predict.", _SEGMENT),
}


def _add(group: typer.Typer, commands: _Commands) -> None:
    for name, (function, summary) in commands.items():
        group.command(name, short_help=summary)(interruptible(function))


_add(app, _COMMANDS)
for _name, (_commands, _summary, _help) in _GROUPS.items():
    _group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    _add(_group, _commands)
    app.add_typer(_group, name=_name, short_help=_summary, help=_help)

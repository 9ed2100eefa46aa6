"""The command line is a promise: commands, arguments and flags change only together with this list and CHANGELOG."""

import typer

from cmtvision.cli.app import app

DENSE_TRAIN = [
    "data", "--model", "--weights", "--recipe", "--set", "--out", "--minutes", "--epochs", "--batch-size", "--device",
    "--seed", "--devices", "--resume", "--accept-changed-data", "--overwrite", "--json",
]  # fmt: skip
FROZEN = {
    "sample-data": ["directory", "--task", "--full", "--scenes", "--seed", "--overwrite", "--json"],
    "check-data": [
        "data", "--out", "--fix", "--model", "--multi-label", "--image-column", "--label-column", "--device", "--seed",
        "--strict", "--overwrite", "--json",
    ],
    "train": [
        "data", "--model", "--weights", "--recipe", "--set", "--out", "--minutes", "--epochs", "--batch-size",
        "--device", "--seed", "--devices", "--resume", "--accept-changed-data", "--overwrite", "--wandb", "--mlflow",
        "--json",
    ],
    "tune": [
        "data", "--trials", "--minutes", "--recipe", "--set", "--space", "--out", "--storage", "--pruner", "--resume",
        "--json",
    ],
    "lr-find": ["data", "--recipe", "--set", "--from", "--to", "--steps", "--out", "--csv", "--overwrite", "--json"],
    "shard": [
        "data", "out", "--shard-size", "--short-side", "--val-fraction", "--seed", "--multi-label", "--image-column",
        "--label-column", "--overwrite", "--json",
    ],
    "eval": [
        "run", "data", "--split", "--batch-size", "--device", "--threads", "--streams", "--devices", "--json", "--csv",
        "--overwrite",
    ],
    "calibrate": ["model", "data", "--batch-size", "--device", "--threads", "--overwrite", "--json"],
    "detect train": [*DENSE_TRAIN],
    "detect eval": ["run", "data", "--split", "--device", "--devices", "--workers", "--json"],
    "detect predict": ["run", "images", "--min-score", "--out", "--max-pixels", "--device", "--overwrite", "--json"],
    "segment train": [*DENSE_TRAIN],
    "segment eval": ["run", "data", "--split", "--window", "--device", "--devices", "--workers", "--json"],
    "segment predict": [
        "run", "images", "--out", "--masks", "--window", "--max-pixels", "--device", "--overwrite", "--json",
    ],
    "predict": [
        "run", "images", "--top", "--batch-size", "--device", "--conformal", "--sets", "--abstain", "--threads",
        "--streams", "--json", "--csv",
    ],
    "report": [
        "run", "data", "--split", "--slices", "--corruptions", "--num-images", "--batch-size", "--device", "--out",
        "--model-card", "--overwrite", "--json",
    ],
    "compare-runs": ["a", "b", "data", "--split", "--batch-size", "--device", "--out", "--overwrite", "--json"],
    "explain": ["model", "image", "--ideas", "--method", "--stage", "--class", "--out", "--overwrite", "--json"],
    "export": [
        "run", "--to", "--out", "--img-size", "--precision", "--opset", "--preprocess-inside", "--compile", "--bundle",
        "--images", "--num-images", "--tolerance", "--overwrite", "--json",
    ],
    "quantize": [
        "run", "data", "--to", "--out", "--max-drop", "--calibration", "--num-images", "--weight-only", "--rest",
        "--img-size", "--batch-size", "--seed", "--json", "--overwrite",
    ],
    "verify": ["a", "b", "--images", "--num-images", "--tolerance", "--device", "--json"],
    "bench": [
        "targets", "--batch", "--threads", "--runtime", "--precision", "--img-size", "--rounds", "--seconds",
        "--device", "--out", "--overwrite", "--json",
    ],
    "info": ["model", "--img-size", "--num-classes", "--json"],
    "models": ["pattern", "--peers", "--json"],
    "ablate": ["data", "--size", "--only", "--recipe", "--set", "--seeds", "--out", "--resume", "--json"],
    "compare": [
        "models", "--img-size", "--batch", "--rounds", "--device", "--runtime", "--precision", "--train", "--recipe",
        "--set", "--seeds", "--out", "--resume", "--overwrite", "--json",
    ],
    "scale": [
        "--from", "--phi", "--gmacs", "--params", "--latency", "--device", "--name", "--out", "--overwrite", "--json",
    ],
    "recipes": ["name", "--json"],
    "convert": ["source", "target", "--to", "--ema", "--no-ema", "--model", "--overwrite", "--json"],
    "doctor": ["--json"],
}  # fmt: skip
GLOBAL = ["--version", "--debug"]


def flags(command):
    names = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            names.append(parameter.name)
        else:
            names += [*parameter.opts, *parameter.secondary_opts]
    return [name for name in names if name not in ("--help", "-h")]


def commands_below(group):
    """Every command by its words: 'train', 'detect train'."""
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {inner}": one for inner, one in commands_below(command).items()}
        else:
            found[name] = command
    return found


def test_commands_and_flags_are_the_frozen_ones():
    root = typer.main.get_command(app)
    assert {name: flags(command) for name, command in commands_below(root).items()} == FROZEN
    assert flags(root) == GLOBAL


def test_every_command_and_option_explains_itself():
    root = typer.main.get_command(app)
    for name, command in commands_below(root).items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"

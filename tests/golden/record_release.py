"""Record what a release computes and writes, so that a later one can be held to it.

    python tests/golden/record_release.py

writes release.json (names and shapes of tensors, logits, losses over 50 seeded steps, what commands say) and the folder
release/ (a run, its exports for ONNX and OpenVINO, a bundle, shards; all of a tiny network). Run it on the code whose
figures and files the next one has to reproduce, and say why in the changelog.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from PIL import Image

import cmtvision
from cmtvision.data import write_sample_data
from cmtvision.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_weights import randomise

HERE = Path(__file__).parent
FIGURES, FILES = HERE / "release.json", HERE / "release"
NETWORKS = (
    "cmt_nano", "cmt_ti", "cmt_xs", "cmt_s", "cmt_b", "cmt_ti_kecam",
    "cmt_ladder_0_deit_nano", "cmt_ladder_1_stem_nano",
    "cmt_ladder_2_stages_nano", "cmt_ladder_3_lpu_nano", "cmt_ladder_4_lmhsa_nano", "cmt_ladder_5_irffn_nano",
    "ceit_nano", "ceit_tiny_patch16_224", "cvt_nano", "pvt_v1_nano", "vit_nano", "deit_nano_distilled",
)  # fmt: skip
OPTIONS = {
    "block": {"rel_pos": "block"},
    "none": {"rel_pos": "none"},
    "relative": {"rel_pos": "relative", "qkv_bias": False, "kv_norm": "layer", "head_act_first": True},
    "no lpu": {"lpu": False, "abs_pos": True},
    "no shortcut": {"ffn": "no_shortcut"},
    "mlp": {"ffn": "mlp", "kv_strides": (1, 1, 1, 1)},
    "layer norm": {"norm": "layer", "block_norm_eps": 1e-5, "downsample_norm_eps": 1e-6},
}
TINY = {"dims": [8, 16, 24, 40], "depths": [1, 1, 2, 1], "stem_width": 8, "head_width": 48}
CLASSES, PER_CLASS = ("bag", "sandal", "trouser"), 8
STEPS = 50
SETTINGS = [
    "schedule.epochs=25", "schedule.warmup_epochs=1", "train.batch_size=8", "data.val_fraction=0.34", "ema.decay=0.9",
    "augment.random_resized_crop=true", "augment.crop_padding=0", "augment.auto_augment=rand-m5-mstd0.5-inc1",
    "augment.mixup=0.2", "model.drop_path_rate=0.1", "train.max_minutes=null", "train.threads=1",
]  # fmt: skip
COMMANDS = {
    "models": ["models", "cmt_*", "--json"],
    "info": ["info", "cmt_nano", "--json"],
    "recipes": ["recipes", "demo"],
    "scale": ["scale", "--from", "cmt_nano", "--phi", "-1", "--json"],
    "predict": ["predict", "RUN", "PHOTOS/bag", "--json"],
    "eval": ["eval", "RUN", "PHOTOS", "--json"],
    "eval onnx": ["eval", "ONNX", "PHOTOS", "--json"],
    "no such model": ["train", "PHOTOS", "--model", "cmt_smal"],
    "no such folder": ["train", "nowhere"],
    "no such command": ["trian"],
}
PRIVATE = {"seconds", "images_per_second", "remembered", "name", "out", "folder", "run", "data"}
"""What differs from machine to machine, or was said to change."""


def network(name: str, **options: object) -> dict[str, object]:
    """Names and shapes of the tensors, and the logits that seeded weights give."""
    model = randomise(timm.create_model(name, num_classes=7, **options)).eval()
    lines = [f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items()]
    channels, height, width = model.default_cfg["input_size"]
    images = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(images)[0].tolist()
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    parameters = hashlib.sha256("\n".join(n for n, _ in model.named_parameters()).encode()).hexdigest()
    return {"tensors": len(lines), "state_dict": digest, "parameters": parameters, "logits": logits}


def photos(folder: Path) -> Path:
    """A few of the bundled photos, a folder for each class."""
    sample = write_sample_data(folder / "sample").directory / "train"
    for label in CLASSES:
        (folder / "photos" / label).mkdir(parents=True)
        for file in sorted((sample / label).iterdir())[:PER_CLASS]:
            shutil.copyfile(file, folder / "photos" / label / file.name)
    return folder / "photos"


def train(data: Path, out: Path, precision: str = "fp32", name: str = "cmt_nano") -> list[float]:
    """The losses of 50 seeded steps, two an epoch."""
    options = json.dumps(TINY if name == "cmt_nano" else {})
    settings = [*SETTINGS, f"model.name={name}", f"model.options={options}", f"train.precision={precision}"]
    result = cmtvision.fit(load_recipe("demo", settings), data, out, overwrite=True)
    return [row["train_loss"] for row in result.rows]


Run = Callable[[list[str], Path], subprocess.CompletedProcess[bytes]]


def fresh(words: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a Python of its own."""
    home = {**os.environ, "XDG_DATA_HOME": str(folder)}  # where a release of before remembered names
    command = [sys.executable, "-m", "cmtvision", *words]
    return subprocess.run(command, cwd=folder, env=home, capture_output=True, check=False)


def said(words: list[str], places: dict[str, Path], folder: Path, run: Run = fresh) -> dict[str, object]:
    """The output and exit code of a command, without what depends on the machine."""
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    done = run(words, folder)
    out = done.stdout.decode()
    for name, place in places.items():
        out = out.replace(str(place), name)
    try:
        shown = without(json.loads(out), PRIVATE)
    except ValueError:
        shown = out
    errors = [line for line in done.stderr.decode().splitlines() if line.startswith("error")]
    return {"code": done.returncode, "out": shown, "error": errors}


def without(value: object, keys: set[str]) -> object:
    """JSON without some keys, wherever they are."""
    if isinstance(value, dict):
        return {key: without(one, keys) for key, one in value.items() if key not in keys}
    return [without(one, keys) for one in value] if isinstance(value, list) else value


def figures(data: Path, files: Path) -> dict[str, object]:
    """All figures of this code, of photos and files as ``write_files`` leaves them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        losses = {
            "cmt_nano": train(data, folder / "a"),
            "cmt_nano bf16": train(data, folder / "b", "bf16"),
            "ceit_nano": train(data, folder / "c", name="ceit_nano"),
        }
        places = {"RUN": files / "run", "ONNX": files / "onnx", "PHOTOS": data}
        commands = {name: said(words, places, folder) for name, words in COMMANDS.items()}
    networks = {name: network(name) for name in NETWORKS}
    networks |= {f"cmt_nano, {name}": network("cmt_nano", **options) for name, options in OPTIONS.items()}
    return {"networks": networks, "losses": losses, "commands": commands}


def write_files(data: Path, files: Path) -> None:
    """A run of a tiny network, its exports, a bundle, and shards of its photos."""
    shutil.rmtree(files, ignore_errors=True)
    train(data, files / "run")
    for unwanted in ("report.html", "recipe.lock", ".lock"):
        (files / "run" / unwanted).unlink(missing_ok=True)
    shutil.rmtree(files / "run" / "tensorboard", ignore_errors=True)
    images = [str(file) for file in sorted(data.rglob("*.png"))[:4]]
    for to in ("onnx", "openvino"):
        cmtvision.export(files / "run", to, files / to, images=images)
    for words in (["export", files / "run", "--to", "onnx", "--bundle", "--out", files / "bundle", "--images", data],
                  ["shard", data, files / "shards"]):  # fmt: skip
        subprocess.run([sys.executable, "-m", "cmtvision", *map(str, words)], check=True)


def main() -> None:
    """Write release.json and release/."""
    FILES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        data = photos(Path(temporary))
        kept = FILES / "photos"
        write_files(data, FILES)
        shutil.copytree(data, kept)
    found = {"command": "python tests/golden/record_release.py", "torch": torch.__version__, **figures(kept, FILES)}
    FIGURES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Image.open(next(kept.rglob("*.png"))).verify()


if __name__ == "__main__":
    main()

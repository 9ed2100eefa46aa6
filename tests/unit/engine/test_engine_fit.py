"""Training into a run folder: what is written, what is refused, and that a resumed run ends where it would have."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml
from engine_photos import CLASSES, TINY, write_photos
from PIL import Image
from rich.console import Console

import cmtvision
from cmtvision.deploy import export
from cmtvision.engine import TrainingDiverged, TrainingInterrupted, fit
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.recipe import load_recipe
from cmtvision.weights import read_state_dict

RANDOM = ("augment.mixup=0.2", "augment.random_erasing=0.2", "model.drop_path_rate=0.2", "model.drop_rate=0.2")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "shapes")


def recipe(*overrides):
    return load_recipe("demo", [*TINY, *overrides])


def rows(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_folder_holds_all_it_promises(photos, tmp_path):
    out = tmp_path / "run"
    result = fit(recipe("train.eval_every=2"), photos, out)
    assert result.epochs == 2
    assert result.evaluation.num_images == 12
    names = {
        "recipe.yaml",
        "run.json",
        "split.csv",
        "skipped.csv",
        "model.safetensors",
        "model.json",
        "evaluation.json",
    }
    assert names <= {path.name for path in out.iterdir()}
    assert (out / "checkpoints" / "last.ckpt").is_file()
    assert any("tfevents" in path.name for path in (out / "tensorboard").iterdir())
    assert not [path for path in out.rglob(".*") if path.is_file()]
    assert yaml.safe_load((out / "recipe.yaml").read_text())["train"]["batch_size"] == 8
    run = json.loads((out / "run.json").read_text())
    assert (run["num_train"], run["num_val"], run["classes"]) == (36, 12, list(CLASSES))
    first, second = rows(out)
    assert first["val_top1"] == ""
    assert float(second["val_top1"]) == json.loads((out / "evaluation.json").read_text())["top1"]
    card = json.loads((out / "model.json").read_text())
    assert card["metrics"]["num_images"] == 12
    assert card["provenance"]["data_fingerprint"] == run["data_fingerprint"]
    predicted = cmtvision.load(out).predict([photos / "disc" / "00.png"])[0]
    assert predicted.label in CLASSES


def test_it_learns(photos, tmp_path):
    result = fit(recipe("schedule.epochs=12", "optim.lr=3e-3"), photos, tmp_path / "run")
    assert result.evaluation.top1 >= 0.9


def test_the_process_is_left_as_it_was(photos, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    handler = signal.getsignal(signal.SIGINT)
    fit(recipe("schedule.epochs=1", "train.threads=1"), photos, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_whatever_the_workers(photos, tmp_path):
    states = []
    for name, workers in (("a", 0), ("b", 2)):
        fit(recipe(*RANDOM, f"data.workers={workers}"), photos, tmp_path / name)
        states.append(read_state_dict(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(photos, tmp_path, stop_after, monkeypatch):
    chosen = recipe(*RANDOM)
    fit(chosen, photos, tmp_path / "whole")
    seen = 0
    from cmtvision.engine.callbacks.progress import ProgressView

    def step(self, epoch, loss, rate, memory=None):
        nonlocal seen
        seen += 1
        if seen == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ProgressView, "step", step)
    with pytest.raises(TrainingInterrupted, match=r"cmtvision train .*shapes --out .*parts --resume"):
        fit(chosen, photos, tmp_path / "parts")
    monkeypatch.undo()
    result = fit(chosen, photos, tmp_path / "parts", resume=True)
    whole, parts = (read_state_dict(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert result.epochs == 2
    kept = ("epoch", "step", "lr", "train_loss", "val_loss", "val_top1")
    wanted, got = ([[row[key] for key in kept] for row in rows(tmp_path / name)] for name in ("whole", "parts"))
    assert got == wanted


def test_a_second_ctrl_c_stops_at_once(photos, tmp_path, monkeypatch):
    from cmtvision.engine.callbacks.checkpoint import Checkpoint
    from cmtvision.engine.callbacks.progress import ProgressView

    def slow_save(self, trainer):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Checkpoint, "save", slow_save)

    monkeypatch.setattr(ProgressView, "step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(
        TrainingInterrupted, match="stopped by Ctrl-C while training; nothing was saved yet, start again"
    ):
        fit(recipe(), photos, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_resume_refuses_what_is_not_there_and_changed_photos(photos, tmp_path):
    with pytest.raises(ConfigError, match="nothing to resume"):
        fit(recipe(), photos, tmp_path / "none", resume=True)
    own = write_photos(tmp_path / "own")
    fit(recipe("schedule.epochs=1"), own, tmp_path / "run")
    (own / "disc" / "00.png").unlink()
    again = recipe("schedule.epochs=1")
    with pytest.raises(DataError, match=r"changed since this run began \(36 .* then, 35 .*--accept-changed-data"):
        fit(again, own, tmp_path / "run", resume=True)
    longer = recipe("schedule.epochs=3")
    assert fit(longer, own, tmp_path / "run", resume=True, accept_changed_data=True).epochs == 3
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_train"] == 35
    (own / "disc").rename(own / "circle")
    with pytest.raises(DataError, match="the classes changed"):
        fit(longer, own, tmp_path / "run", resume=True, accept_changed_data=True)


def test_a_torn_checkpoint_is_named(photos, tmp_path):
    fit(recipe("schedule.epochs=1"), photos, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        fit(recipe("schedule.epochs=1"), photos, tmp_path / "run", resume=True)


def test_a_folder_in_use_is_not_overwritten(photos, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="not empty"):
        fit(recipe(), photos, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_a_loss_that_is_no_number_stops_the_run(photos, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"no longer a number at step \d+, on the batch of .*\d\d\.png"):
        fit(recipe("optim.lr=1e30", "optim.clip_grad_norm=null", "schedule.warmup_lr=1e30"), photos, tmp_path / "run")


@pytest.mark.slow
def test_a_compiled_network_trains_and_saves_plain_names(photos, tmp_path, monkeypatch):
    # the tracing compiler without C++: inductor on this network takes minutes and is tested with the networks
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    fit(recipe("schedule.epochs=1", "schedule.warmup_epochs=0", "train.compile=true"), photos, tmp_path / "run")
    assert "stem.conv1.weight" in read_state_dict(tmp_path / "run" / "model.safetensors")


def test_fp16_on_a_cpu_is_refused(photos, tmp_path):
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        fit(recipe("train.precision=fp16", "train.device=cpu"), photos, tmp_path / "run")


def test_early_stopping_keeps_the_best_epoch(photos, tmp_path):
    result = fit(recipe("schedule.epochs=30", "train.early_stop_patience=1", "optim.lr=3e-3"), photos, tmp_path / "run")
    best = max(float(row["val_top1"]) for row in rows(tmp_path / "run"))
    assert result.epochs < 30
    assert result.evaluation.top1 == best


def test_without_held_out_photos_there_is_no_evaluation(photos, tmp_path):
    result = fit(recipe("data.val_fraction=0", "schedule.epochs=1", "schedule.warmup_epochs=0"), photos, tmp_path / "r")
    assert result.evaluation is None
    assert not (tmp_path / "r" / "evaluation.json").exists()


def test_fine_tuning_keeps_the_backbone_and_a_matching_classifier(photos, tmp_path):
    fit(recipe("schedule.epochs=1"), photos, tmp_path / "first")
    trained = read_state_dict(tmp_path / "first" / "model.safetensors")
    from cmtvision.engine.build import build_model

    same = build_model(recipe(f"model.weights={tmp_path / 'first'}"), 3).model.state_dict()
    other = build_model(recipe(f"model.weights={tmp_path / 'first'}"), 5).model.state_dict()
    assert torch.equal(same["head.weight"], trained["head.weight"])
    assert other["head.weight"].shape[0] == 5
    assert torch.equal(other["stages.2.blocks.1.lmhsa.q.weight"], trained["stages.2.blocks.1.lmhsa.q.weight"])
    gray = build_model(
        recipe(
            f"model.weights={tmp_path / 'first'}", "model.in_chans=1", "preprocess.mean=null", "preprocess.std=null"
        ),
        3,
    ).model.state_dict()
    assert torch.allclose(gray["stem.conv1.weight"], trained["stem.conv1.weight"].sum(1, keepdim=True), atol=1e-6)


PHASES = [
    ("reading the photos", "CLASSIFICATION.read", "nothing was saved yet, start again with the same command"),
    ("building the network", "CLASSIFICATION.build", "nothing was saved yet, start again"),
    ("training", "TrainingModule.on_train_start", "nothing was saved yet, start again"),
    ("training", "RunCallback.settle", "what was saved is kept, go on with: cmtvision train"),
    ("evaluating the final network", "CLASSIFICATION.finish", "what was saved is kept, go on with: "),
]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "place", "advice"), PHASES)
def test_ctrl_c_at_any_moment_is_one_line_and_its_advice_works(photos, tmp_path, monkeypatch, phase, place, advice):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    module = sys.modules["cmtvision.engine.fit"]  # the name in the package is the function
    owner, _, name = place.rpartition(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(module, owner) if owner else module, name, stopped)
        with pytest.raises(TrainingInterrupted, match=f"stopped by Ctrl-C while {phase}; {advice}"):
            fit(recipe("schedule.epochs=1"), photos, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done = fit(recipe("schedule.epochs=1"), photos, tmp_path / "run", resume="go on" in advice)
    assert done.epochs == 1


def parts(out):
    found = {"train": set(), "val": set(), "test": set()}
    for row in csv.DictReader((out / "split.csv").read_text().splitlines()):
        found[row["split"]].add(row["path"])
    return found


@pytest.mark.slow
def test_a_resumed_run_keeps_its_own_split_whatever_rule_would_choose_now(photos, tmp_path, monkeypatch):
    import cmtvision.data.readers as readers

    chosen, out = recipe(*RANDOM), tmp_path / "run"
    rule = readers.held_out
    moved = write_photos(tmp_path / "moved:here")
    with monkeypatch.context() as patch:  # as an earlier version chose
        patch.setattr(readers, "held_out", lambda names, labels, share, seed: rule(names, labels, share, seed + 1))
        fit(chosen, photos, tmp_path / "whole")
        from cmtvision.engine.callbacks.progress import ProgressView

        patch.setattr(ProgressView, "step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(TrainingInterrupted):
            fit(chosen, photos, out)
    before = parts(out)
    result = fit(chosen, moved, out, resume=True)
    assert parts(out) == before != parts_of(moved)
    assert result.evaluation.num_images == 12
    assert {photo.path.relative_to(moved).as_posix() for photo in result.evaluation.predictions} == before["val"]
    whole, resumed = (read_state_dict(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert json.loads((out / "run.json").read_text())["data"] == str(moved)
    new = moved / "disc" / "99.png"
    new.write_bytes((moved / "disc" / "00.png").read_bytes() + b" ")
    fit(recipe(*RANDOM, "schedule.epochs=3"), moved, out, resume=True, accept_changed_data=True)
    after = parts(out)
    assert before["val"] == after["val"] - {"disc/99.png"}
    assert before["train"] == after["train"] - {"disc/99.png"}


def parts_of(photos):
    from cmtvision.data import read_dataset

    index = read_dataset(photos, val_fraction=0.25)
    return {part: {index.relative(one.path) for one in getattr(index, part)} for part in ("train", "val", "test")}


def test_photos_that_the_data_moves_to_its_held_out_part_stay_trained_on(tmp_path):
    data = tmp_path / "data"
    write_photos(data / "train", per_class=12)
    write_photos(data / "val", per_class=4, seed=1)
    listed = [f"{photo.relative_to(data)},{photo.parent.name}" for photo in sorted(data.glob("*/*/*.png"))]
    rows = [f"{row},{row.partition('/')[0]}" for row in listed]
    (data / "list.csv").write_text("path,label,split\n" + "\n".join(rows))
    fit(recipe("schedule.epochs=1"), data / "list.csv", tmp_path / "run")
    rows[0], rows[-1] = (row.rpartition(",")[0] + f",{part}" for row, part in ((rows[0], "val"), (rows[-1], "train")))
    (data / "list.csv").write_text("path,label,split\n" + "\n".join(rows))
    longer = recipe("schedule.epochs=2")
    with pytest.raises(DataError, match=r"2 photos are in another part than when this run began \(.*--accept-changed"):
        fit(longer, data / "list.csv", tmp_path / "run", resume=True)
    result = fit(longer, data / "list.csv", tmp_path / "run", resume=True, accept_changed_data=True)
    assert (len(parts(tmp_path / "run")["train"]), result.evaluation.num_images) == (37, 11)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["schedule.epochs=9", "train.early_stop_patience=1", "optim.lr=1e-9"], r"stopped early, its best epoch is \d"),
        (["schedule.epochs=9", "train.max_minutes=0.00001"], "train.max_minutes are over"),
        (["schedule.epochs=1"], "all 1 epochs are done"),
        (["train.max_steps=3"], "all 3 steps are done"),
    ],
)
def test_a_run_that_is_over_is_not_trained_on(photos, tmp_path, settings, why):
    out = tmp_path / "run"
    first = fit(recipe(*settings), photos, out)
    weights, figures = read_state_dict(out / "model.safetensors"), rows(out)
    assert first.epochs < 9
    said = Console(record=True, width=200, file=io.StringIO())
    for _ in range(2):
        second = fit(recipe(*settings), photos, out, resume=True, console=said)
        assert second.epochs == first.epochs
        assert second.evaluation.top1_correct == first.evaluation.top1_correct
    kept = ("epoch", "step", "train_loss", "val_loss", "val_top1")
    assert [[row[key] for key in kept] for row in rows(out)] == [[row[key] for key in kept] for row in figures]
    after = read_state_dict(out / "model.safetensors")
    assert all(torch.equal(weights[key], after[key]) for key in weights)
    assert len(re.findall(rf"the run is finished \({why}\)", said.export_text())) == 2


def test_what_is_refused_leaves_the_run_before_as_it_was(photos, tmp_path):
    out = tmp_path / "run"
    fit(recipe("schedule.epochs=1"), photos, out)
    before = {file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    other = write_photos(tmp_path / "two", 4)
    shutil.rmtree(next(other.iterdir()))
    fit(recipe("schedule.epochs=1"), other, tmp_path / "teacher")
    wrong = recipe("distill.teacher=cmt_nano", f"distill.weights={tmp_path / 'teacher'}")
    with pytest.raises(ConfigError, match="classes"):
        fit(wrong, photos, out, overwrite=True)
    assert {file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_an_epoch_survives_a_held_out_photo_that_can_no_longer_be_read(photos, tmp_path, monkeypatch):
    from cmtvision.data import read_dataset
    from cmtvision.engine.callbacks.run import RunCallback

    chosen, data, out = recipe(*RANDOM), write_photos(tmp_path / "data"), tmp_path / "run"
    fit(chosen, data, tmp_path / "whole")
    lost = read_dataset(data, val_fraction=0.25).val[5].path
    content, settle = lost.read_bytes(), RunCallback.settle

    def damaged(self, *args):
        if self._pending is not None and self._pending["row"]["epoch"] == 0:
            lost.write_bytes(content[:40])
        settle(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "settle", damaged)
        with pytest.raises(DataError, match=lost.name):
            fit(chosen, data, out)
    assert (out / "checkpoints" / "last.ckpt").is_file()
    lost.write_bytes(content)
    fit(chosen, data, out, resume=True)
    kept = ("epoch", "step", "lr", "train_loss", "val_loss", "val_top1")
    wanted, got = ([[row[key] for key in kept] for row in rows(tmp_path / name)] for name in ("whole", "run"))
    assert got == wanted
    whole, resumed = (read_state_dict(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_a_thin_photo_among_the_held_out_trains(tmp_path):
    data = write_photos(tmp_path / "data")
    for photo in sorted((data / "disc").iterdir()):
        with Image.open(photo) as picture:
            picture.resize((1400, 1)).save(photo)
    assert fit(recipe("schedule.epochs=1", "model.img_size=224"), data, tmp_path / "run").evaluation.num_images == 12


@pytest.mark.slow
def test_two_runs_never_share_a_folder(photos, tmp_path, monkeypatch):
    out = tmp_path / "new" / "run"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom cmtvision.artefact.run.write import alone_in\n"
        "with alone_in(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        for resume in ("auto", False):
            with pytest.raises(ConfigError, match="another process is at work in it"):
                fit(recipe("schedule.epochs=1"), photos, out, resume=resume)
        assert [path.name for path in out.iterdir()] == [".lock"]
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    fit(recipe("schedule.epochs=1"), photos, out)  # a kill frees it
    assert not (out / ".lock").exists()
    with pytest.raises(DataError, match="no such folder"):
        fit(recipe(), tmp_path / "absent", tmp_path / "gone" / "run")
    assert not (tmp_path / "gone").exists()


@pytest.mark.slow
def test_overwriting_a_run_takes_its_exports_and_nothing_else(photos, tmp_path):
    out = tmp_path / "run"
    fit(recipe("schedule.epochs=1"), photos, out)
    export(out, "torch", images=photos / "disc", num_images=2)
    mixed = export(out, "torch", out / "exports" / "mine", images=photos / "disc", num_images=2).folder
    (mixed / "notes.txt").write_text("mine")
    (out / "exports" / "thoughts").mkdir()
    (out / "exports" / "thoughts" / "model.json").write_text("{}")
    (out / "checkpoints" / ".writing.ckpt").write_bytes(b"half")
    (out / "notes.txt").write_text("mine")
    fit(recipe("schedule.epochs=1"), photos, out, overwrite=True)
    left = {path.relative_to(out / "exports").as_posix() for path in (out / "exports").rglob("*") if path.is_file()}
    assert left == {"mine/notes.txt", "thoughts/model.json"}
    assert not (out / "checkpoints" / ".writing.ckpt").exists()
    assert (out / "notes.txt").read_text() == "mine"

"""The plan that is said before a run: its numbers by hand, at most ten lines, nothing left out that is at work."""

import re
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import pytest
from engine_photos import write_photos

from cmtvision.cli.plan import default_out, merged_overrides, settled, show_plan
from cmtvision.cli.plan_lines import extras, plan_lines, planned_steps, sparkline
from cmtvision.cli.resuming import recipe_there
from cmtvision.data import DatasetIndex, Sample, readers
from cmtvision.engine.choosing.choose import Chosen
from cmtvision.errors import ConfigError
from cmtvision.recipe import dump_recipe, load_recipe

NANO = ("model.name=cmt_nano", "model.weights=null", "train.device=cpu", "train.precision=fp32")


def plan(recipe, *settings, num_train=400, num_val=100, processes=1, classes=5):
    """The lines by their first word."""
    photos = [Sample(Path("a.png"), 0)]
    names = [str(label) for label in range(classes)]
    index = DatasetIndex(Path(), names, photos * num_train, photos * num_val, [], "", "folders")
    chosen = Chosen(load_recipe(recipe, settings))
    lines = plan_lines(chosen, index, "photos", Path("runs/x"), processes=processes)
    assert len(lines) <= 10
    assert not any("\n" in line for line in lines)
    return {line.split()[0]: line[9:] for line in lines}


def test_imagenet_on_eight_processes_in_figures():
    said = plan("imagenet_cmt_s", *NANO, num_train=1_281_167, num_val=50_000, processes=8, classes=1000)
    assert said["data"] == ("photos: 1,281,167 to train on, 50,000 held out (split as the data says), 1000 classes")
    assert (
        said["recipe"]
        == "imagenet_cmt_s: 310 epochs (warm-up 20, cool-down 10), 387,810 steps of 1,024 photos, seed 3407"
    )
    assert said["batch"] == "1,024 photos a step = 128 x 8 processes, 1,251 steps an epoch, each photo 3 times"
    curve, text = said["lr"].split(" ", 1)
    rates, how = text.split("; ")
    assert rates == "from 1e-07 up to 0.001 (0.0005 x 1,024 / 512), last epoch 1e-05"
    assert how == "adamw, by the epoch, an epoch late as released"
    assert (curve[0], max(curve), curve[-1], len(curve)) == ("▁", "█", "▁", 40)
    assert said["also"] == "EMA 0.99996, ddp"


@pytest.mark.parametrize(
    ("settings", "num_train", "processes", "wanted"),
    [
        ([], 1000, 1, (64, 64, 15, 45)),  # 1000 // 64 whole batches
        (["train.accumulate=4"], 1000, 1, (64, 256, 4, 12)),  # the last step of an epoch takes three batches
        ([], 1000, 3, (64, 192, 5, 15)),  # 334 photos each
        ([], 50, 1, (50, 50, 1, 3)),
        ([], 50, 3, (16, 48, 1, 3)),
        (["train.max_steps=7"], 1000, 1, (64, 64, 15, 7)),
        (["schedule.cooldown_epochs=2"], 1000, 1, (64, 64, 15, 75)),
        (["data.repeated_aug=3"], 1000, 1, (64, 64, 12, 36)),  # 768 photos
    ],
)
def test_steps_are_those_that_training_will_take(settings, num_train, processes, wanted):
    recipe = load_recipe("demo", ["train.batch_size=64", "schedule.epochs=3", "schedule.warmup_epochs=1", *settings])
    steps = planned_steps(recipe, num_train, processes)
    assert (steps.batch, steps.effective, steps.per_epoch, steps.total) == wanted


def test_more_processes_than_photos_is_one_line():
    with pytest.raises(ConfigError, match="3 photos for 4 processes") as caught:
        planned_steps(load_recipe("demo"), 3, 4)
    assert "\n" not in str(caught.value)


def test_finetuning_says_when_it_ends_and_what_makes_a_batch():
    said = plan("finetune", *NANO, "train.accumulate=2", processes=2)
    assert said["also"].startswith("classifier alone for 2 epochs, layer decay 0.8, ")
    assert said["recipe"].endswith("or until 10 bring nothing better, seed 0")
    assert said["batch"] == "128 photos a step = 32 x 2 accumulated x 2 processes, 3 steps an epoch"


@pytest.mark.parametrize(
    ("recipe", "settings", "processes", "wanted"),
    [
        (
            "finetune",
            [],
            2,
            "classifier alone for 2 epochs, layer decay 0.8, EMA 0.999 with warm-up, classes balanced by loss, ddp",
        ),
        (
            "demo",
            ["train.sync_bn=true", "train.strategy=fsdp", "distill.teacher=runs/large", "ema.enabled=false"],
            2,
            "soft distillation from runs/large (its memory is not counted), fsdp with sync BN",
        ),
        (
            "demo",
            ["data.multi_label=true", "loss.name=asymmetric", "model.grad_checkpointing=true"],
            1,
            "EMA 0.998 with warm-up, several labels a photo, asymmetric loss, activations recomputed",
        ),
        ("linear_probe", ["train.compile=true"], 1, "backbone frozen, compiled"),
        ("demo", ["ema.enabled=false"], 1, ""),
    ],
)
def test_everything_that_is_at_work_is_named(recipe, settings, processes, wanted):
    assert ", ".join(extras(load_recipe(recipe, settings), processes)) == wanted


def test_a_line_with_nothing_to_say_is_left_out():
    said = plan("linear_probe", *NANO, "model.freeze=none")
    assert "also" not in said
    assert "EMA" not in said["memory"]


def test_memory_is_stated_part_by_part():
    said = plan("demo", *NANO, "train.batch_size=16")["memory"]
    found = re.fullmatch(
        r"about ([\d.]+) MB: weights ([\d.]+) MB, gradients ([\d.]+) MB, optimizer ([\d.]+) MB, EMA ([\d.]+) MB, "
        r"activations ([\d.]+) MB \(16 photos, fp32\)",
        said,
    )
    whole, weights, gradients, optimizer, ema, activations = map(float, found.groups())
    assert weights == ema
    assert optimizer == pytest.approx(2 * gradients, rel=0.01)
    assert whole == pytest.approx(weights + gradients + optimizer + ema + activations, rel=0.01)
    assert activations > 10
    recomputed = plan("demo", *NANO, "train.batch_size=16", "model.grad_checkpointing=true")["memory"]
    assert float(re.search(r"activations ([\d.]+) MB", recomputed)[1]) < activations / 2


def test_more_than_the_machine_has_is_said_beforehand():
    said = plan("demo", *NANO, "train.batch_size=10000000", num_train=10_000_000)["memory"]
    assert re.search(r"; only [\d.]+ [GM]B are free: train.batch_size=auto or a smaller one$", said)


def test_a_batch_size_chosen_later_leaves_open_what_depends_on_it():
    said = plan("demo", *NANO, "train.batch_size=auto", "optim.lr_base_batch=512")
    assert said["batch"].startswith("chosen at the start")
    assert "0.0015 for each 512 photos a step" in said["lr"]
    assert said["memory"].endswith(" a photo")
    assert "steps" not in said["recipe"]


def test_a_sparkline_shows_rise_and_fall():
    assert sparkline([0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([3.0]) == "█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    many = sparkline([i / 999 for i in range(1000)])
    assert len(many) == 40
    assert list(many) == sorted(many)


def test_the_plan_of_real_photos_goes_to_stderr(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos")
    show_plan(Chosen(load_recipe("demo", ["train.device=cpu"])), photos, tmp_path / "run", resume=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"^model +cmt_nano, [\d,]+ parameters, 32 x 32 px, from random weights$", said.err, re.MULTILINE)
    assert re.search(r"photos: 3\d to train on, 1\d held out \(split by seed\), 3 classes", said.err)
    assert said.err.rstrip().endswith(f"{tmp_path / 'run'} (resumed)")
    for part in ("train", "test"):
        write_photos(tmp_path / "parts" / part, per_class=4)
    show_plan(Chosen(load_recipe("demo", ["train.device=cpu"])), tmp_path / "parts", tmp_path / "run", resume=False)
    assert "(split by seed), 12 set apart for test, 3 classes" in capsys.readouterr().err


def test_the_folder_of_a_run_is_named_after_data_of_any_kind(tmp_path):
    recipe = load_recipe("demo")
    for data, stem in (
        (tmp_path / "my photos", "my-photos"),
        ("torchvision:CIFAR10", "CIFAR10"),
        ("hf:owner/pets", "pets"),
        (tmp_path / "labels.csv", "labels"),
    ):
        assert re.fullmatch(rf"{stem}-cmt_nano-\d{{8}}-\d{{6}}", default_out(data, recipe).name)
        assert default_out(data, recipe).parent == Path("runs")


@pytest.mark.parametrize(
    ("epochs", "settings", "warmup", "head"),
    [(40, [], 3, 2), (2, [], 0.2, 1), (1, [], 0.1, 0), (2, ["optim.head_warmup_epochs=2"], 0.2, 2)],
)
def test_a_short_trial_shortens_the_warmups_unless_they_are_given(epochs, settings, warmup, head):
    recipe = load_recipe("finetune", merged_overrides("finetune", settings, {"schedule.epochs": epochs}))
    assert recipe.schedule.epochs == epochs
    assert (recipe.schedule.warmup_epochs, recipe.optim.head_warmup_epochs) == (pytest.approx(warmup), head)


def test_resume_auto_keeps_what_was_chosen_and_takes_what_the_machine_is(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        dump_recipe(load_recipe("demo", ["schedule.epochs=9", "model.rel_pos=block"]))
    )
    there = recipe_there(tmp_path, None, ["train.device=cpu", "train.threads=1", "schedule.epochs=9"], None)
    assert (there.train.device, there.train.threads, there.model.name) == ("cpu", 1, "cmt_nano")
    with pytest.raises(ConfigError, match=r"schedule.epochs is 9, not 8\)"):
        recipe_there(tmp_path, None, ["schedule.epochs=8"], None)
    with pytest.raises(ConfigError, match=r"schedule.epochs is 9, not"):
        recipe_there(tmp_path, "demo", ["model.rel_pos=block"], None)
    limited = load_recipe("demo", ["schedule.epochs=99", "train.max_minutes=3"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(limited))
    assert recipe_there(tmp_path, "demo", [], 3.0) == limited  # its epochs were fitted to the time
    with pytest.raises(ConfigError, match="seed is 0, not 1"):
        recipe_there(tmp_path, "demo", ["seed=1"], 3.0)
    assert recipe_there(tmp_path / "nothing", None, [], None) is None
    with pytest.raises(ConfigError, match="say which run with --out"):
        recipe_there(None, None, [], None)


@pytest.mark.slow
@pytest.mark.parametrize("named", ["demo", None])
def test_photos_are_listed_once_to_choose_and_to_plan(tmp_path, monkeypatch, capsys, named):
    photos, listed = write_photos(tmp_path / "photos"), []
    original = readers.list_source
    monkeypatch.setattr(readers, "list_source", lambda *args: listed.append(args) or original(*args))
    with ExitStack() as stack:
        chosen, index = settled(
            None, named, ["train.device=cpu"], photos, None,
            minutes=None, began=perf_counter(), after=0.0, processes=1, overwrite=False, stack=stack,
        )  # fmt: skip
        show_plan(chosen, photos, tmp_path / "run", False, index=index)
    assert len(listed) == 1
    said = capsys.readouterr().err
    show_plan(chosen, photos, tmp_path / "run", False)  # with a list of its own it says the same
    assert capsys.readouterr().err == said

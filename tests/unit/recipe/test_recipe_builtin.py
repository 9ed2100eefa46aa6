"""The recipes that come with the package: what each must say and do, and that their headers can be believed."""

import re
from importlib import resources

import pytest

from cmtvision.cli.app import app
from cmtvision.errors import ConfigError
from cmtvision.recipe import list_recipes, load_recipe, recipe_comment

TRANSFER = {  # data set of torchvision, the paper's accuracy for CMT-S, photos
    "cifar10": ("CIFAR10", 99.2, 50_000),
    "cifar100": ("CIFAR100", 91.7, 50_000),
    "cars": ("StanfordCars:FOLDER", 94.4, 8_144),
    "flowers": ("Flowers102", 98.7, 1_020),
    "pets": ("OxfordIIITPet", 95.2, 3_680),
}


def test_all_that_were_promised_are_there():
    sizes = {f"imagenet_cmt_{size}" for size in ("ti", "xs", "s", "b")}
    transfers = {f"transfer_{name}" for name in TRANSFER}
    dense = {f"coco_{kind}_cmt_s_{times}x" for kind in ("retinanet", "maskrcnn") for times in (1, 3)}
    own = {
        "detect",
        "segment",
        "ade20k_upernet_cmt_s",
        "default",
        "demo",
        "fashion_mnist",
        "finetune",
        "linear_probe",
        "distill",
    }
    assert set(list_recipes()) >= sizes | transfers | dense | own


@pytest.mark.parametrize("name", list_recipes())
def test_each_opens_with_what_it_is_its_command_cost_and_accuracy(name):
    comment = recipe_comment(name)
    lines = comment.splitlines()
    assert all(line.startswith("#") and len(line) <= 120 for line in lines)
    commands = [line for line in lines if line.startswith("#   cmtvision ")]
    assert any(" train " in command for command in commands)
    assert name in ("default", "detect", "segment") or any(f"--recipe {name}" in command for command in commands)
    assert "# Cost: " in comment
    assert "ccuracy" in comment


@pytest.mark.parametrize("name", list_recipes())
def test_the_commands_of_the_headers_have_options_that_exist(name):
    import typer

    commands = typer.main.get_command(app).commands
    for words, given in re.findall(r"cmtvision ((?:detect |segment )?train) ([^\n]*)", recipe_comment(name)):
        group, _, last = words.rpartition(" ")
        train = commands[group].commands[last] if group else commands[last]
        options = {flag for parameter in train.params for flag in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", given)) <= options
    for setting in re.findall(r"--set ([a-z_]+\.[a-z_]+=[\w./]+)", recipe_comment(name)):
        load_recipe(name, [setting])


@pytest.mark.parametrize("kind", ["retinanet", "maskrcnn"])
def test_the_recipes_of_coco_tell_the_papers_figures_and_what_is_our_own(kind):
    once, thrice = (load_recipe(f"coco_{kind}_cmt_s_{times}x") for times in (1, 3))
    assert (once.schedule.epochs, thrice.schedule.epochs) == (12, 36)
    assert (once.scene.short_sides, len(thrice.scene.short_sides), thrice.scene.longest) == ((800,), 11, 1333)
    assert once.model.name == thrice.model.name == f"cmt_s_{kind}"
    assert (once.optim.layer_decay, once.ema.enabled, once.model.weights) == (0.9, True, "pretrained")
    comment = recipe_comment(f"coco_{kind}_cmt_s_1x")
    said = re.search(r"Cost: ([\d.e]+) FLOPs = 2 x 3 x ([\d.]+) GMACs x ([\d,]+) images x (\d+) epochs", comment)
    images = int(said[3].replace(",", ""))
    assert float(said[1]) == pytest.approx(6e9 * float(said[2]) * images * int(said[4]), rel=0.03)
    assert {"retinanet": "44.3", "maskrcnn": "44.6"}[kind] in comment
    assert "our choice" in recipe_comment("coco_retinanet_cmt_s_1x").lower()


def test_the_switches_of_the_released_behaviour_are_as_the_header_says():
    recipe = load_recipe("imagenet_cmt_s")
    assert (recipe.schedule.late, recipe.ema.on_resume) == (True, "restore")
    other = load_recipe("imagenet_cmt_s", ["schedule.late=false", "ema.on_resume=restart"])
    assert (other.schedule.late, other.ema.on_resume) == (False, "restart")


@pytest.mark.parametrize("name", TRANSFER)
def test_transfers_name_their_data_and_the_papers_accuracy_and_their_own_choice_of_settings(name):
    data, accuracy, photos = TRANSFER[name]
    recipe, comment = load_recipe(f"transfer_{name}"), recipe_comment(f"transfer_{name}")
    assert f"cmtvision train torchvision:{data} --recipe transfer_{name}\n" in comment
    assert f"the paper reports {accuracy}% for CMT-S" in comment
    assert "our own choice" in comment
    said = re.search(r"Cost: ([\d.e]+) FLOPs = 2 x 3 x 4.032 GMACs x ([\d,]+) photos x (\d+) epochs", comment)
    assert (int(said[2].replace(",", "")), int(said[3])) == (photos, recipe.schedule.epochs)
    assert float(said[1]) == pytest.approx(6 * 4.032e9 * photos * recipe.schedule.epochs, rel=0.02)
    assert (recipe.model.name, recipe.model.img_size, recipe.model.weights) == ("cmt_s", None, "pretrained")
    assert recipe.train.early_stop_patience is None
    assert (recipe.data.val_fraction == 0) == (name != "flowers")  # the photos above are all trained on
    assert f"#   cmtvision eval RUN torchvision:{data} --split test" in comment.splitlines()
    assert recipe.optim.layer_decay == load_recipe("finetune").optim.layer_decay < 1


def test_finetuning_has_all_that_small_skewed_data_needs():
    recipe = load_recipe("finetune")
    assert recipe.model.weights == "pretrained"
    assert recipe.optim.layer_decay == 0.8
    assert recipe.optim.head_warmup_epochs == 2
    assert recipe.ema.enabled
    assert recipe.ema.warmup
    assert recipe.data.class_balance == "loss"
    assert recipe.train.early_stop_patience == 10
    assert 400 // recipe.train.batch_size >= 10  # four fifths of 500 photos make steps enough in an epoch
    assert load_recipe("finetune", ["data.class_balance=sampling"]).data.class_balance == "sampling"


def test_a_linear_probe_changes_nothing_but_the_classifier_and_photos_only_lightly():
    recipe = load_recipe("linear_probe")
    assert (recipe.model.freeze, recipe.model.drop_path_rate, recipe.optim.layer_decay) == ("backbone", 0.0, None)
    augment = recipe.augment
    assert (augment.auto_augment, augment.random_erasing, augment.mixup, augment.cutmix) == (None, 0.0, 0.0, 0.0)


def test_distillation_waits_for_its_teacher():
    recipe = load_recipe("distill")
    assert (recipe.distill.kind, recipe.distill.teacher) == ("soft", "TEACHER")
    for kind in ("hard", "feature"):
        assert f"--set distill.kind={kind}" in recipe_comment("distill")


def test_the_comment_of_a_file_is_its_own_and_a_file_without_one_has_none(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("# mine\n# second\nbase: demo\n# not this\n")
    assert recipe_comment(file) == recipe_comment(str(file)) == "# mine\n# second"
    file.write_text("base: demo\n")
    assert recipe_comment(file) == ""
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        recipe_comment("demmo")


def test_headers_are_in_the_files_that_are_shipped():
    folder = resources.files("cmtvision.recipe") / "builtin"
    assert (folder / "imagenet_cmt_s.yaml").read_text(encoding="utf-8").startswith(recipe_comment("imagenet_cmt_s"))


def test_showing_a_recipe_shows_its_comment_and_is_still_a_recipe(tmp_path):
    from typer.testing import CliRunner

    shown = CliRunner().invoke(app, ["recipes", "transfer_pets"])
    assert shown.exit_code == 0
    assert shown.output.startswith(recipe_comment("transfer_pets") + "\nname: transfer_pets\n")
    (tmp_path / "mine.yaml").write_text(shown.output)
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("transfer_pets")
    assert recipe_comment(tmp_path / "mine.yaml") == recipe_comment("transfer_pets")


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        ("linear_probe", "optim.head_warmup_epochs=1", "optim.head_warmup_epochs: with model.freeze=backbone"),
        ("demo", "distill.kind=hard", "distill.kind: there is no teacher; set distill.teacher"),
        ("demo", "distill.alpha=0.7", "distill.alpha: there is no teacher; set distill.teacher"),
    ],
)
def test_a_setting_that_nothing_would_read_is_refused(recipe, setting, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_recipe(recipe, [setting])

import subprocess
import sys

import pytest

from cmtvision.errors import ConfigError
from cmtvision.recipe import Recipe, dump_recipe, list_recipes, load_recipe


def refused(*overrides, recipe=None):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def test_builtins_load_describe_themselves_and_round_trip(tmp_path):
    described = list_recipes()
    assert set(described) >= {"default", "demo", "fashion_mnist"}
    for name, first_line in described.items():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert first_line
        assert recipe.description.startswith(first_line)
        (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_none_is_the_default():
    assert load_recipe(None) == load_recipe("default")


def test_overrides_are_read_as_yaml():
    recipe = load_recipe(
        "demo",
        ["optim.lr=5e-4", "model.img_size=[32, 64]", "train.batch_size=auto", "augment.auto_augment=null", "seed=7",
         "model.weights=a=b.pth", "train.compile=true"],
    )  # fmt: skip
    assert recipe.optim.lr == 5e-4
    assert recipe.model.img_size == (32, 64)
    assert recipe.train.batch_size == "auto"
    assert recipe.augment.auto_augment is None
    assert recipe.model.weights == "a=b.pth"
    assert (recipe.seed, recipe.train.compile) == (7, True)
    assert recipe.model.name == "cmt_nano"  # what is not named stays


def test_unknown_names_get_a_suggestion_with_the_full_path():
    assert "'optim.lrr'; did you mean 'optim.lr'?" in refused("optim.lrr=1")
    assert "'lr'; did you mean 'optim.lr'?" in refused("lr=1")
    assert "did you mean 'train.batch_size'?" in refused("model.batchsize=1")
    assert "did you mean 'schedule.epochs'?" in refused("epoch=1")
    assert "unknown recipe 'dmo'; did you mean 'demo'?" in refused(recipe="dmo")
    assert "the sections are model" in refused("zzzz.qqqq=1")


def test_malformed_overrides():
    assert "expected section.key=value" in refused("optim.lr")
    assert "'optim' is a section" in refused("optim=3")
    assert "not valid YAML" in refused("optim.lr=[1")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lr=fast", "optim.lr: got 'fast', expected a valid number"),
        ("optim.lr=-1", "optim.lr: got -1, expected greater than 0"),
        ("optim.lr=.nan", "optim.lr: got nan, expected a finite number"),
        ("train.batch_size=0", "train.batch_size: got 0, expected greater than or equal to 1 or 'auto'"),
        ("train.batch_size=yes", "train.batch_size: got True, expected a value that is not true/false"),
        ("train.precision=int8", "train.precision: got 'int8', expected 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("preprocess.crop_pct=1.2", "preprocess.crop_pct: got 1.2, expected less than or equal to 1"),
        ("preprocess.mean=[1]", "preprocess.mean: got 1 values, expected one per channel (3)"),
        ("optim.betas=[0.9]", "optim.betas: got [0.9], expected another number of values"),
        ("schedule.warmup_epochs=900", "schedule.warmup_epochs: got 900, expected fewer than epochs (50)"),
        ("augment.scale=[0.9, 0.1]", "augment.scale: got (0.9, 0.1), expected (smaller, larger)"),
        ("augment.crop_padding=2", "augment.crop_padding: it needs random_resized_crop=false"),
        ("augment.color_jitter=0.4", "augment.color_jitter: it needs auto_augment=null"),
        ("data.val_fraction=1", "data.val_fraction: got 1, expected less than 1"),
        ("seed=-1", "seed: got -1, expected greater than or equal to 0"),
        ("train=", "'train' is a section"),
    ],
)
def test_each_bad_value_is_one_line_with_its_key(override, line):
    message = refused(override)
    assert line in message
    assert "\n" not in message


def test_two_bad_values_are_two_lines():
    lines = refused("optim.lr=-1", "train.accumulate=0").splitlines()
    assert [line.split(":")[0] for line in lines] == ["optim.lr", "train.accumulate"]


def test_files_inherit_and_keep_their_own_name(tmp_path):
    (tmp_path / "parent.yaml").write_text("base: demo\noptim: {lr: 0.5}\ntrain: {accumulate: 3}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "child.yaml").write_text("base: ../parent.yaml\noptim: {weight_decay: 0}\nmodel:\n")
    child = load_recipe(tmp_path / "sub" / "child.yaml", ["train.accumulate=4"])
    demo = load_recipe("demo")
    assert (child.name, child.description) == ("child", "")
    assert (child.optim.lr, child.optim.weight_decay, child.train.accumulate) == (0.5, 0, 4)
    assert child.augment == demo.augment
    assert child.model == demo.model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: 1, lr: 2}", "line 1: the key 'lr' is given twice"),
        ("base: self.yaml", "leads back to itself"),
        ("base: 3", "base: got 3"),
        ("optm: {lr: 1}", "unknown key 'optm'; did you mean 'optim'?"),
        ("optim: {momentun: 1}", "unknown key 'optim.momentun'"),
        ("optim: 3", "optim: got 3, expected a valid dictionary"),
        ("- a", "got list, expected keys"),
        ("a: [", "is not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("base: nowhere.yaml", "does not exist"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text, message):
    (tmp_path / "self.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "self.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_binary_and_huge_files_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.yaml").write_bytes(b"#" * 1_000_001)
    for name, message in (("a.yaml", "cannot be read as text"), ("b.yaml", "over 1,000,000 bytes")):
        with pytest.raises(ConfigError, match=message):
            load_recipe(tmp_path / name)


def test_recipes_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().optim.lr = 1.0


def test_reading_a_recipe_needs_no_torch():
    code = "import sys; from cmtvision.recipe import load_recipe; load_recipe('demo'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

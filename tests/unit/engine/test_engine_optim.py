"""What learns, how fast, and what is decayed: layer decay, a frozen backbone, head warm-up, late and timely rates."""

import pytest
import timm
import torch
from torch import nn

from cmtvision.engine.memory import saved_bytes, training_memory
from cmtvision.engine.optim import (
    build_optimizer,
    build_scheduler,
    freeze,
    learns_head_only,
    lr_curve,
    peak_lr,
    set_head_only,
)
from cmtvision.errors import ConfigError
from cmtvision.recipe import load_recipe

CPU = torch.device("cpu")


def nano():
    return timm.create_model("cmt_nano", num_classes=4).train()


def scales(model, recipe):
    """lr_scale of each parameter by name."""
    optimizer = build_optimizer(model, recipe, 1e-3, CPU)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}


def test_layers_learn_slower_the_deeper_they_lie():
    """cmt_nano has depths 1, 2, 4, 1: stem, eight blocks and the classifier are ten layers."""
    found = scales(nano(), load_recipe("demo", ["optim.layer_decay=0.5"]))
    steps_below_the_classifier = {
        "stem": 9,
        "stages.0.downsample": 8,  # a stage's entry and its bias table belong to its first block
        "stages.0.position_bias": 8,
        "stages.0.blocks.0": 8,
        "stages.1.downsample": 7,
        "stages.1.position_bias": 7,
        "stages.1.blocks.0": 7,
        "stages.1.blocks.1": 6,
        "stages.2.downsample": 5,
        "stages.2.position_bias": 5,
        "stages.2.blocks.0": 5,
        "stages.2.blocks.1": 4,
        "stages.2.blocks.2": 3,
        "stages.2.blocks.3": 2,
        "stages.3.downsample": 1,
        "stages.3.position_bias": 1,
        "stages.3.blocks.0": 1,
        "final": 1,
        "head": 0,
    }
    assert found.keys() == dict(nano().named_parameters()).keys()
    for name, scale in found.items():
        part = next(part for part in steps_below_the_classifier if name.startswith(f"{part}."))
        assert scale == 0.5 ** steps_below_the_classifier[part], name


def test_layer_decay_scales_the_rate_and_leaves_weight_decay_as_it_is():
    recipe = load_recipe("demo", ["optim.layer_decay=0.5", "optim.weight_decay=0.03", "schedule.warmup_lr=1e-6"])
    model = nano()
    optimizer = build_optimizer(model, recipe, 1e-3, CPU)
    scheduler = build_scheduler(optimizer, recipe, 10)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.03}
    for group in optimizer.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
        assert group["lr"] == pytest.approx(1e-6 * group["lr_scale"])
    scheduler.step_update(5)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx((1e-6 + (1e-3 - 1e-6) * 0.5) * group["lr_scale"])


def test_a_frozen_backbone_leaves_the_classifier_alone_in_the_optimiser():
    model, recipe = nano(), load_recipe("linear_probe", ["model.name=cmt_nano"])
    optimizer = build_optimizer(model, recipe, 1e-3, CPU)
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(model.head.parameters())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert all(learns_head_only(recipe, epoch) for epoch in (0, 29))


def test_both_classifiers_of_a_distilled_network_stay_free():
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1)
    freeze(model, load_recipe("linear_probe"))
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def step(model, optimizer):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    optimizer.step()
    optimizer.zero_grad()


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_head_warmup_changes_the_classifier_only_and_leaves_no_trace():
    model, recipe = nano(), load_recipe("finetune", ["model.name=cmt_nano", "optim.head_warmup_epochs=2"])
    assert [learns_head_only(recipe, epoch) for epoch in range(4)] == [True, True, False, False]
    optimizer = build_optimizer(model, recipe, 1e-2, CPU)
    model.stem.conv1.weight.requires_grad_(False)  # frozen by someone else
    frozen_norm = model.stem.norm2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_head_only(model, True)
    model.train()  # as training does after an evaluation; it starts the batch norms again
    frozen_norm.eval()
    set_head_only(model, True)
    step(model, optimizer)
    assert changed(model, before) == {"head.weight", "head.bias"}
    assert model.training
    assert model.head_drop.training

    set_head_only(model, False)
    set_head_only(model, False)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["stem.conv1.weight"]
    assert [part for part in model.modules() if not part.training] == [frozen_norm]
    step(model, optimizer)
    moved = changed(model, before)
    assert "stem.conv2.weight" in moved
    assert "stages.3.blocks.0.irffn.expand_norm.running_mean" in moved
    assert "stem.conv1.weight" not in moved


def test_ending_head_warmup_does_not_free_a_frozen_backbone():
    model, recipe = nano(), load_recipe("linear_probe")
    freeze(model, recipe)
    set_head_only(model, True)
    set_head_only(model, False)
    assert sum(p.requires_grad for p in model.parameters()) == 2


def test_a_network_without_a_classifier_is_refused_in_one_line():
    for model in (timm.create_model("cmt_nano", num_classes=0), nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match="no classifier with parameters") as caught:
            set_head_only(model, True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.name=adamww"], "no optimiser 'adamww'; did you mean 'adamw'"),
        (["optim.name=sgd", "optim.eps=1e-6"], "optim.eps: sgd has no such setting"),
        (["optim.name=sgd", "optim.betas=[0.5, 0.9]"], "optim.betas: sgd has no such setting"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(nano(), load_recipe("demo", settings), 1e-3, CPU)


def test_other_optimisers_take_betas_and_eps_where_they_have_them():
    settings = ["optim.name=lamb", "optim.betas=[0.8, 0.9]", "optim.eps=1e-5"]
    optimizer = build_optimizer(nano(), load_recipe("demo", settings), 1e-3, CPU)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.9), 1e-5)
    build_optimizer(nano(), load_recipe("demo", ["optim.name=sgd"]), 1e-3, CPU)


def test_late_rates_are_the_timely_ones_an_epoch_later():
    settings = ["schedule.epochs=10", "schedule.warmup_epochs=3", "schedule.step=epoch", "schedule.cooldown_epochs=2"]
    timely = lr_curve(load_recipe("demo", settings), 128, 7)
    late = lr_curve(load_recipe("demo", [*settings, "schedule.late=true"]), 128, 7)
    assert len(timely) == len(late) == 12
    assert late == [timely[0], *timely[:-1]]
    assert timely[0] < timely[1]


def test_the_rate_is_scaled_by_the_batch_but_warmup_and_last_rates_are_not():
    settings = ["optim.lr=1e-3", "optim.lr_base_batch=256", "schedule.step=epoch", "schedule.cooldown_epochs=1"]
    small, large = (lr_curve(load_recipe("demo", settings), batch, 7) for batch in (256, 1024))
    assert peak_lr(load_recipe("demo", settings), 1024) == pytest.approx(4e-3)
    assert small[0] == large[0] == pytest.approx(1e-5)
    assert small[-1] == large[-1] == pytest.approx(1e-5)
    assert large[5] > 3.9 * small[5]


def test_saved_bytes_are_what_autograd_really_keeps():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    # a photo: its 3 x 4 x 4 values for the convolution's weight, ReLU's 8 x 4 x 4 output, log-softmax's 5 and a label
    assert saved_bytes(model, (3, 4, 4)) == 4 * (48 + 128 + 5) + 8
    model.requires_grad_(False)[3].requires_grad_(True)
    assert saved_bytes(model, (3, 4, 4)) == 4 * (128 + 5) + 8


def test_memory_shrinks_with_what_is_left_out():
    model = timm.create_model("test_resnet", num_classes=4).train()  # timm's smallest
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def memory(*settings, recipe="demo", processes=1):
        return training_memory(model, load_recipe(recipe, settings), (3, 64, 64), processes)

    whole = memory()
    parameters = sum(p.numel() for p in model.parameters())
    assert whole.gradients == 4 * parameters
    assert whole.optimizer == 8 * parameters
    assert whole.ema == whole.weights > 4 * parameters
    assert whole.total(8) - whole.total(4) == 4 * whole.per_photo
    sgd = memory("optim.name=sgd", "ema.enabled=false")
    assert (sgd.optimizer, sgd.ema) == (4 * parameters, 0)
    assert memory("train.precision=bf16").per_photo < whole.per_photo
    assert memory("train.strategy=fsdp", processes=2).optimizer == whole.optimizer // 2
    freeze(model, load_recipe("linear_probe"))
    set_head_only(model, True)
    probe = memory(recipe="linear_probe")
    assert probe.per_photo < whole.per_photo / 100
    assert probe.gradients == 4 * sum(p.numel() for p in model.get_classifier().parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_that_needs_values_gets_no_estimate():
    class Valued(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3 * 16, 2)

        def forward(self, x):
            return self.fc(x.flatten(1)) if x.sum().item() > 0 else self.fc(-x.flatten(1))

    assert saved_bytes(Valued(), (3, 4, 4)) is None

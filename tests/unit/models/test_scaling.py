"""The law of compound scaling, the search along its staircase, and what the command makes of both."""

import json
import math
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmtvision.cli.commands.scale import scale as scale_command
from cmtvision.cli.scale_output import as_recipe
from cmtvision.cli.scale_target import find, parse_target
from cmtvision.engine.build import build_model
from cmtvision.errors import ConfigError
from cmtvision.models import VARIANTS, Variant, user_models
from cmtvision.models.analysis.scaling import (
    GROWTH,
    MAX_PHI,
    MIN_PHI,
    apply_law,
    cost,
    default_name,
    paper_fits,
    scale,
    search,
    staircase,
)
from cmtvision.recipe import load_recipe

bases = st.sampled_from(sorted(VARIANTS))
phis = st.floats(MIN_PHI, MAX_PHI)


def work(row: Variant) -> float:
    """Something that every number of a row makes larger, without building anything."""
    blocks = sum(depth * dim**2 for depth, dim in zip(row.depths, row.dims, strict=True))
    return (blocks + row.stem_width**2) * row.input_size**2 / 1e3


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    import timm.models._registry as registry

    monkeypatch.setattr(registry, "_model_entrypoints", dict(registry._model_entrypoints))
    monkeypatch.setattr(user_models, "_definitions", {})


@pytest.mark.parametrize("base", sorted(VARIANTS))
def test_phi_0_is_the_base_itself(base):
    assert apply_law(base, 0.0) is VARIANTS[base]
    assert any(step.phi == 0 and step.variant is VARIANTS[base] for step in staircase(base))


def test_the_law_by_hand():
    row = apply_law(
        "cmt_s", 1.0
    )  # 3 x 1.2 = 3.6, 16 x 1.2 = 19.2; 64 x 1.3 = 83.2; 32 x 1.3 = 41.6; 224 x 1.15 = 257.6
    assert (row.depths, row.dims) == ((4, 4, 19, 4), (84, 168, 336, 672))
    assert (row.stem_width, row.input_size, row.num_heads, row.mlp_ratio) == (42, 256, (1, 2, 4, 8), 4.0)
    assert row.released_file is None
    assert pytest.approx(2.3524, abs=1e-3) == GROWTH
    scaled, base = scale("cmt_nano", 2.0), cost(VARIANTS["cmt_nano"])[1]
    assert scaled.predicted_macs == pytest.approx(base * 6.25)
    assert scaled.predicted_macs_by_product == pytest.approx(base * GROWTH**2)
    assert (scaled.parameters, scaled.macs) == cost(scaled.variant)
    assert scaled.macs > 2 * base


@given(bases, phis)
def test_every_phi_gives_a_legal_row(base, phi):
    row, origin = apply_law(base, phi), VARIANTS[base]
    widths = [dim / heads for dim, heads in zip(row.dims, row.num_heads, strict=True)]
    assert set(widths) == {widths[0]}  # heads divide widths, and all heads are of one width
    assert widths[0] % 2 == 0
    assert row.stem_width % 2 == 0
    assert row.input_size % 32 == 0
    assert min(*row.depths, row.input_size // 32, widths[0] // 8, row.stem_width // 8) >= 1
    kept = ("mlp_ratio", "num_heads", "kv_strides", "head_width", "drop_rate")
    assert [getattr(row, name) for name in kept] == [getattr(origin, name) for name in kept]


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(bases, st.floats(MIN_PHI, 0.0))
def test_every_phi_gives_a_network_that_runs(base, phi):
    parameters, macs = cost(apply_law(base, phi))
    assert parameters > VARIANTS[base].head_width * 1000
    assert macs > VARIANTS[base].head_width * 1000


@pytest.mark.parametrize("phi", [MIN_PHI, pytest.param(MAX_PHI, marks=pytest.mark.slow)])
def test_the_ends_can_be_built(phi):
    assert cost(apply_law("cmt_s", phi))[0] == {MIN_PHI: 1_862_398, MAX_PHI: 1_618_034_284}[phi]


@given(bases, phis, phis)
def test_no_number_shrinks_as_phi_grows(base, one, other):
    low, high = (apply_law(base, phi) for phi in sorted((one, other)))
    assert all(
        a <= b
        for x, y in ((low.dims, high.dims), (low.depths, high.depths))
        for a, b in zip(x, y, strict=True)
    )  # fmt: skip
    assert low.stem_width <= high.stem_width
    assert low.input_size <= high.input_size


def test_each_step_costs_more_than_the_last():
    rows = [step.variant for step in staircase("cmt_nano")][::32]
    costs = [cost(row) for row in rows]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(costs))


@given(bases, phis)
def test_the_staircase_is_the_law(base, phi):
    steps = staircase(base)
    assert (steps[0].low, steps[-1].high) == (MIN_PHI, MAX_PHI)
    inside = [step for step in steps if step.low < phi < step.high]
    if inside and min(phi - inside[0].low, inside[0].high - phi) > 1e-9:
        assert apply_law(base, phi) == inside[0].variant == apply_law(base, inside[0].phi)
    assert len({step.variant for step in steps}) == len(steps)


@given(bases, st.floats(0.0, 1.0), st.floats(-0.3, 0.3))
def test_the_search_finds_the_nearest_step(base, share, shift):
    steps = staircase(base)
    ends = [math.log(work(steps[i].variant)) for i in (0, -1)]
    target = math.exp(ends[0] + share * (ends[1] - ends[0]) + shift)
    found = search(base, target, work)
    assert found.value == work(found.step.variant)
    assert abs(found.value - target) == min(abs(work(step.variant) - target) for step in steps)
    below, above = math.log(target) < ends[0], math.log(target) > ends[1]
    if min(abs(math.log(target) - end) for end in ends) > 1e-9:
        assert found.out_of_reach == ("smallest" if below else "largest" if above else None)
    assert len(found.tried) < 25


@given(st.randoms(use_true_random=False), st.floats(1.0, 1e9))
def test_the_search_ends_whatever_is_measured(random, target):
    found = search("cmt_ti", target, lambda row: random.uniform(1.0, 1e9), most=7, max_phi=3.0)
    assert 1 <= len(found.tried) <= 7
    assert abs(found.value - target) == min(abs(value - target) for _, value in found.tried)
    assert found.step.phi < 3


@given(bases, st.floats(MIN_PHI, MAX_PHI))
def test_a_name_by_phi_is_legal_and_says_it(base, phi):
    name = default_name(base, phi)
    user_models.check_name(name)
    value = name.removeprefix(f"{base}_phi_").replace("p", ".").replace("m", "-")
    assert float(value) == pytest.approx(phi, abs=1e-6)


def test_names_by_phi():
    assert [default_name("cmt_s", phi) for phi in (-0.5, 0.0, 1.25, 3.323)] == [
        "cmt_s_phi_m0p50", "cmt_s_phi_0p00", "cmt_s_phi_1p25", "cmt_s_phi_3p323",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("gmacs", "2.0", 2e9), ("gmacs", ".5", 5e8), ("gmacs", "1e-2", 1e7), ("params", "12M", 12e6),
        ("params", "1.5b", 1.5e9), ("params", "800k", 8e5), ("params", "12000000", 12e6), ("params", "1e7", 1e7),
        ("latency", "20ms", 0.02), ("latency", "0.5s", 0.5), ("latency", "20 ms", 0.02),
    ],
)  # fmt: skip
def test_quantities(option, text, value):
    target = parse_target(**{"gmacs": None, "params": None, "latency": None, option: text})
    assert target is not None
    assert target.kind == option
    assert target.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("params", "12X", "12M"), ("params", "", "12M"), ("params", "M", "12M"), ("params", "-3M", "12M"),
        ("params", "0", "more than 0"), ("gmacs", "2G", "such as 2.0"), ("gmacs", "nan", "such as 2.0"),
        ("gmacs", "inf", "such as 2.0"), ("gmacs", "1,5", "such as 2.0"), ("latency", "20", "20ms"),
        ("latency", "0ms", "more than 0"), ("latency", "5min", "20ms"), ("params", "1.2.3M", "12M"),
    ],
)  # fmt: skip
def test_nonsense_quantities(option, text, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        parse_target(**{"gmacs": None, "params": None, "latency": None, option: text})
    assert str(caught.value).startswith(f"--{option} {text}: ")


def test_what_cannot_be_reached_names_what_can():
    target = parse_target("0.0001", None, None)
    with pytest.raises(ConfigError, match=r"--gmacs 0.0001: the law takes cmt_s from [\d.]+ GMACs \(phi -6\) to"):
        find("cmt_s", target, lambda row: work(row) * 1e4)
    target = parse_target(None, None, "0.1ms")
    with pytest.raises(ConfigError, match=r"--latency 0.1ms: the smallest CMT by the law takes 3.1 ms here"):
        find("cmt_s", target, lambda row: 3.1e-3)
    target = parse_target(None, None, "100s")
    with pytest.raises(ConfigError, match=r"--latency 100s: the largest CMT that is measured takes 90 s here"):
        find("cmt_s", target, lambda row: 90 * work(row) / work(staircase("cmt_s", 3.0)[-1].variant))


@pytest.mark.parametrize("phi", [6.01, -7.0, math.nan, math.inf])
def test_phi_has_bounds(phi):
    with pytest.raises(ConfigError, match="expected -6 to 6"):
        scale("cmt_s", phi)
    with pytest.raises(ConfigError, match="the law scales one of cmt_nano"):
        scale("resnet50", 0.0)


def test_a_recipe_makes_the_network_that_it_tells_of(tmp_path):
    scaled = scale("cmt_nano", 0.8)
    path = tmp_path / "wide.yaml"
    path.write_text(as_recipe(scaled, "wide", "cmtvision scale --from cmt_nano --phi 0.8", {}), encoding="utf-8")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.model.name, recipe.model.img_size) == ("wide", "cmt_nano", 32)
    built = build_model(recipe, num_classes=1000)
    assert sum(parameter.numel() for parameter in built.model.parameters()) == scaled.parameters
    assert f"{scaled.parameters / 1e6:.2f}M parameters, {scaled.macs / 1e9:.3f} GMACs" in recipe.description


def test_latency_is_measured_and_said(monkeypatch, tmp_path, capsys):
    def measured(model, input_size, batch=1, device="cpu", rounds=5):
        assert (batch, device, input_size) == (1, "cpu", (3, *model.img_size))
        middle = model.stages[0].downsample.conv.out_channels * 1e-3  # a millisecond for a channel
        return [middle * 2, middle, middle * 0.9, middle * 1.1, middle]

    monkeypatch.setattr("cmtvision.bench.timing.measure_latency", measured)
    out = tmp_path / "fast.yaml"
    scale_command(base="cmt_nano", latency="24ms", name="own_fast", out=out, json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["options"]["dims"] == [24, 48, 72, 120]
    assert (said["name"], said["got"], said["device"]) == ("own_fast", 0.024, "cpu")
    assert sorted(said["seconds"]) == pytest.approx([0.0216, 0.024, 0.024, 0.0264, 0.048])
    assert "Measured where it was made: 24 ms (cpu, batch 1, median of 5 rounds)" in out.read_text(encoding="utf-8")
    scale_command(base="cmt_nano", latency="24ms")
    assert "median of 5 rounds, which took 21.6 to 48 ms" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"fast\.yaml: already exists"):
        scale_command(base="cmt_nano", latency="24ms", out=out)


def test_the_recipe_has_a_name(tmp_path, capsys):
    for words, called in (({}, "cmt_nano_phi_m1p00"), ({"name": "mine"}, "mine")):
        scale_command(base="cmt_nano", phi=-1.0, out=tmp_path / "own.yaml", overwrite=True, **words)
        assert load_recipe(tmp_path / "own.yaml").name == called
    assert "next: cmtvision train DATA --recipe" in capsys.readouterr().err
    scale_command(base="cmt_nano", phi=-0.5)
    assert "--out FILE.yaml writes a recipe for it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": 1.0, "gmacs": "2"}, "--phi and --gmacs: several targets; choose one"),
        ({"params": "3M", "latency": "2ms"}, "--params and --latency: several"),
        ({"phi": 1.0, "device": "cuda"}, "--device: only --latency"),
        ({"name": "own_net"}, "--name: of which network"),
        ({"out": Path("x.yaml")}, "--out: of which network"),
        ({"phi": 1.0, "out": Path("x.json")}, "a recipe is a .yaml file"),
        ({"phi": 1.0, "name": "mine"}, "--name: what the recipe is called; add --out"),
        ({"phi": 1.0, "base": "cmt_m"}, "the law scales one of"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        scale_command(**options)


@pytest.mark.slow
def test_how_near_the_paper_lies():
    fits = {fit.name: fit for fit in paper_fits()}
    assert list(fits) == ["cmt_ti", "cmt_xs", "cmt_b"]
    assert [fit.macs for fit in fits.values()] == [638_904_600, 1_546_873_472, 9_317_124_096]
    assert [fit.law.variant.input_size for fit in fits.values()] == [160, 192, 256]
    for fit in fits.values():
        assert astuple(fit.variant) == astuple(VARIANTS[fit.name])
        assert abs(fit.law.macs / fit.macs - 1) < 0.06
        steps = staircase("cmt_s")
        index = next(i for i, step in enumerate(steps) if step.variant == fit.law.variant)
        for neighbour in (steps[index - 1], steps[index + 1]):
            assert abs(cost(neighbour.variant)[1] - fit.macs) >= abs(fit.law.macs - fit.macs)

"""``cmtvision scale``: a CMT of another size, by the paper's law of compound scaling."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from cmtvision.cli.scale_target import Target
    from cmtvision.models.cmt.variants import Variant


def scale(  # typer reads options from the signature
    base: Annotated[str, typer.Option("--from", metavar="MODEL", help="cmt_nano, cmt_ti, ...")] = "cmt_s",
    phi: Annotated[float | None, typer.Option("--phi", help="The step; 0 is the model itself.")] = None,
    gmacs: Annotated[
        str | None,
        typer.Option("--gmacs", metavar="G", help="Find the step of about G thousand million multiply-adds."),
    ] = None,
    params: Annotated[
        str | None, typer.Option("--params", metavar="N", help="Find the step of about N parameters, such as 12M.")
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option("--latency", metavar="TIME", help="Find the step that takes TIME per image here, such as 20ms."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda", "mps"] | None, typer.Option("--device", help="Where latency is measured [cpu].")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What the recipe is called [by base and phi].")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write a recipe for it (.yaml).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the recipe.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Scale a CMT by the paper's law, to a step phi or to a cost; without either, show the law."""
    from cmtvision.cli import output
    from cmtvision.cli.scale_output import as_json, as_recipe, number, show_law, show_scaled

    target = _check({"--phi": phi, "--gmacs": gmacs, "--params": params, "--latency": latency}, device, name, out)
    if target is None and phi is None:
        show_law(base, json)
        return
    if out is not None:
        output.refuse_overwrite(out, overwrite)

    from cmtvision.models.analysis.scaling import apply_law, default_name
    from cmtvision.models.analysis.scaling import scale as scale_by_law

    apply_law(base, 0.0 if phi is None else phi)  # a bad base or phi ends here, before anything takes time
    reached: dict[str, Any] = {}
    if target is not None:
        phi, reached = _find(base, target, device)
    assert phi is not None
    scaled = scale_by_law(base, phi + 0.0)  # -0 is 0
    command = f"cmtvision scale --from {base} {target.asked if target else f'--phi {number(phi)}'}"
    called = name or default_name(scaled.base, scaled.phi)
    if out is not None:
        with output.new_text_file(out, overwrite) as file:
            file.write(as_recipe(scaled, called, command, reached))
    if json:
        output.result_json({"name": called, **as_json(scaled), **reached, "recipe": out and str(out)})
        return
    show_scaled(scaled, target, reached)
    if out is not None:
        output.result(f"recipe: {out}")
        output.note(f"next: cmtvision train DATA --recipe {quote(str(out))}")
    else:
        output.note("next: --out FILE.yaml writes a recipe for it, which train, info and compare take as a model")


def _check(given: dict[str, Any], device: str | None, name: str | None, out: Path | None) -> "Target | None":
    """The target given by the options, after checking their combination; nothing heavy is imported for this."""
    from cmtvision.cli.scale_target import parse_target
    from cmtvision.errors import ConfigError

    asked = [option for option, value in given.items() if value is not None]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)}: several targets; choose one")
    if device is not None and asked != ["--latency"]:
        raise ConfigError("--device: only --latency measures anything; leave it out")
    for option, value in (("--name", name), ("--out", out)):
        if value is not None and not asked:
            raise ConfigError(f"{option}: of which network? Add --phi, --gmacs, --params or --latency")
    if name is not None and out is None:
        raise ConfigError("--name: what the recipe is called; add --out FILE.yaml")
    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out}: a recipe is a .yaml file")
    return parse_target(given["--gmacs"], given["--params"], given["--latency"])


def _find(base: str, target: "Target", wanted_device: str | None) -> tuple[float, dict[str, Any]]:
    """The step for a target, and what is to be said about it."""
    from statistics import median

    from cmtvision.cli import output
    from cmtvision.cli.scale_output import joined
    from cmtvision.cli.scale_target import find
    from cmtvision.models.analysis.scaling import build, cost

    rounds: dict[Variant, list[float]] = {}
    device = "cpu"
    if target.kind == "latency":
        from cmtvision.artefact.predictor import pick_device

        device = pick_device(wanted_device or "cpu")

    def seconds(row: "Variant") -> float:
        from cmtvision.bench.timing import measure_latency

        rounds[row] = measure_latency(build(row), (3, row.input_size, row.input_size), device=device)
        middle = median(rounds[row])
        output.note(f"widths {joined(row.dims)}, {row.input_size} px: {middle * 1e3:.3g} ms")
        return middle

    if target.kind == "latency":
        found = find(base, target, seconds)
    else:
        found = find(base, target, lambda row: float(cost(row)[target.kind == "gmacs"]))
    reached: dict[str, Any] = {
        "target": target.kind,
        "wanted": target.value,
        "got": found.value,
        "off_percent": (found.value / target.value - 1) * 100,
    }
    if target.kind == "latency":
        import torch

        times = rounds[found.step.variant]
        threads = torch.get_num_threads() if device == "cpu" else None
        reached |= {"device": device, "threads": threads, "batch": 1, "seconds": times}
    return found.step.phi, reached

"""The output of ``cmtvision scale``: the tables of the law, JSON, and a recipe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmtvision.cli.scale_target import Target
    from cmtvision.models.analysis.scaling import Scaled
    from cmtvision.models.cmt.variants import Variant

_COLUMNS = ["network", "depths", "widths", "stem", "px", "parameters", "GMACs", "2.5^phi", "2.35^phi"]
_RIGHT = _COLUMNS[3:]
_PHIS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def number(phi: float) -> str:
    """phi as a user would write it, with all its digits."""
    return f"{phi:.10g}"


def joined(values: Sequence[int]) -> str:
    """Four numbers of four stages: '64/128/256/512'."""
    return "/".join(map(str, values))


def show_scaled(scaled: "Scaled", target: "Target | None", reached: dict[str, Any]) -> None:
    """The network next to its base, and how far it is from the target."""
    from cmtvision.cli import output
    from cmtvision.models.analysis.scaling import scale

    rows = [_law_row(scaled.base, scale(scaled.base)), _law_row(f"phi {number(scaled.phi)}", scaled)]
    output.table(_COLUMNS, rows, right=_RIGHT)
    if target is not None:
        off = reached["off_percent"]
        distance = f"{abs(off):.1f}% {'above' if off > 0 else 'below'}" if abs(off) >= 0.05 else "less than 0.05% off"
        output.result(f"asked for {target.show(target.value)}, got {target.show(reached['got'])}: {distance}")
    if "seconds" in reached:
        times = [value * 1e3 for value in reached["seconds"]]
        threads = f", threads: {reached['threads']}" if reached["threads"] else ""
        output.result(
            f"measured here ({reached['device']}{threads}, batch 1): median of {len(times)} rounds, which took "
            f"{min(times):.4g} to {max(times):.4g} ms; at another time an adjacent step may be nearer"
        )


def show_law(base: str, json: bool) -> None:
    """The law, its predictions and the cost of its networks; and how close the paper's networks are to it."""
    from cmtvision.cli import output
    from cmtvision.models.analysis import scaling
    from cmtvision.models.cmt.variants import VARIANTS

    scaling.apply_law(base, 0.0)
    steps = [scaling.scale(base, phi) for phi in _PHIS]
    fits = scaling.paper_fits()
    if json:
        paper = [
            {
                "name": fit.name,
                "input_size": fit.variant.input_size,
                "dims": list(fit.variant.dims),
                "depths": list(fit.variant.depths),
                "stem_width": fit.variant.stem_width,
                "parameters": fit.parameters,
                "gmacs": fit.macs / 1e9,
                "law": as_json(fit.law),
            }
            for fit in fits
        ]
        growth = {"nominal": scaling.NOMINAL_GROWTH, "product": scaling.GROWTH}
        law = {"alpha": scaling.ALPHA, "beta": scaling.BETA, "gamma": scaling.GAMMA, "growth": growth}
        output.result_json({**law, "steps": [as_json(step) for step in steps], "paper": paper})
        return
    nominal = f"{scaling.NOMINAL_GROWTH:g}"
    output.result(
        f"depth x {scaling.ALPHA}^phi, width x {scaling.BETA}^phi, resolution x {scaling.GAMMA}^phi\n"
        f"A step of 1 should cost {nominal} times the multiply-adds (paper: alpha * beta^1.5 * gamma^2 ~ {nominal});\n"
        f"the product of these coefficients is {scaling.GROWTH:.2f}. Both predictions next to the counted cost:\n"
    )
    output.table(_COLUMNS, [_law_row(f"{base} phi {number(step.phi)}", step) for step in steps], right=_RIGHT)
    output.result("\nThe paper's other networks, each next to the step of cmt_s that is nearest in GMACs:\n")
    rows = []
    for fit in fits:
        rows.append([fit.name, *_cells(fit.variant, fit.parameters, fit.macs), "-", "-"])
        rows.append(_law_row(f"cmt_s phi {number(fit.law.phi)}", fit.law))
    output.table(_COLUMNS, rows, right=_RIGHT)
    ratios = ", ".join(f"{fit.name} has {fit.variant.mlp_ratio:g}" for fit in fits)
    output.note(f"The law keeps R, the IRFFN's expansion, at cmt_s's {VARIANTS['cmt_s'].mlp_ratio:g}; {ratios}.")
    output.note("next: cmtvision scale --gmacs 2.0 --out small.yaml")


def as_json(scaled: "Scaled") -> dict[str, Any]:
    """Everything about a scaled network, for --json."""
    return {
        "base": scaled.base,
        "phi": scaled.phi,
        "input_size": scaled.variant.input_size,
        "options": scaled.options,
        "parameters": scaled.parameters,
        "gmacs": scaled.macs / 1e9,
        "predicted_gmacs": {
            "nominal": scaled.predicted_macs / 1e9,
            "product": scaled.predicted_macs_by_product / 1e9,
        },
    }


def as_recipe(scaled: "Scaled", name: str, command: str, reached: dict[str, Any]) -> str:
    """A recipe that names the base and its options, so that its runs open on any machine."""
    import yaml

    side = scaled.variant.input_size
    size = f"{scaled.parameters / 1e6:.2f}M parameters, {scaled.macs / 1e9:.3f} GMACs at {side} px"
    nominal, product = scaled.predicted_macs / 1e9, scaled.predicted_macs_by_product / 1e9
    comment = [
        f"# {scaled.base} scaled by the paper's law, phi = {number(scaled.phi)}. All else is as in the recipe default.",
        f"#   {command}",
        "#   cmtvision train DATA --recipe THIS_FILE",
        f"# Counted with 1000 classes: {size}. The law predicts {nominal:.3f} GMACs (2.5^phi),",
        f"# the product of its coefficients {product:.3f} (2.35^phi).",
    ]
    if "seconds" in reached:
        place = f"{reached['device']}, batch 1, median of {len(reached['seconds'])} rounds"
        comment.append(f"# Measured where it was made: {reached['got'] * 1e3:.4g} ms ({place}).")
    content = {
        "base": "default",
        "name": name,
        "description": f"{scaled.base} scaled by phi = {number(scaled.phi)}: {size}.",
        "model": {"name": scaled.base, "img_size": side, "options": scaled.options},
    }
    return "\n".join(comment) + "\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)


def _law_row(label: str, scaled: "Scaled") -> list[str]:
    predicted = [f"{macs / 1e9:.3f}" for macs in (scaled.predicted_macs, scaled.predicted_macs_by_product)]
    return [label, *_cells(scaled.variant, scaled.parameters, scaled.macs), *predicted]


def _cells(row: "Variant", parameters: int, macs: int) -> list[str]:
    shape = [joined(row.depths), joined(row.dims), str(row.stem_width), str(row.input_size)]
    return [*shape, f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.3f}"]

"""``cmtvision models``: the networks this package adds to timm."""

from typing import Annotated, Any

import typer


def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="FILTER", help="Only names with this in them; * and ? are wildcards.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List our models with their size, cost and published accuracy."""
    from fnmatch import fnmatchcase

    from cmtvision.cli import output
    from cmtvision.cli.subject import build_shapes_only
    from cmtvision.errors import ConfigError
    from cmtvision.models import list_models
    from cmtvision.models.count import count, total
    from cmtvision.models.paper import PAPER_TOP1

    wanted = f"*{pattern}*" if pattern and not set("*?[") & set(pattern) else pattern or "*"
    names = [name for name in list_models() if fnmatchcase(name, wanted)]
    if not names:
        raise ConfigError(
            f"no model of ours matches {pattern!r}; ours: {', '.join(list_models())}. "
            "Any name of timm.list_models() works in train and info too"
        )
    found: list[dict[str, Any]] = []
    for name in names:
        model, input_size = build_shapes_only(name)
        whole = total(count(model, input_size))
        found.append(
            {
                "name": name,
                "parameters": whole.parameters,
                "gmacs": whole.macs / 1e9,
                "input_size": list(input_size),
                "paper_top1": PAPER_TOP1.get(name),
                "weights": model.pretrained_cfg.get("url") or None,
            }
        )
    if json:
        output.result_json(found)
        return
    rows = [
        [
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['gmacs']:.3f}",
            str(row["input_size"][-1]),
            f"{row['paper_top1']:.1f}" if row["paper_top1"] else "-",
            "released" if row["weights"] else "-",
        ]
        for row in found
    ]
    columns = ["model", "parameters", "GMACs", "input px", "paper top-1 %", "weights"]
    output.table(columns, rows, right=columns[1:5])

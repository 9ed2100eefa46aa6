"""``cmtvision models``: the networks of the comparison, ours and the others."""

from typing import Annotated, Any

import typer


def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="FILTER", help="Only names with this in them; * and ? are wildcards.")
    ] = None,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Also the systems CMT is compared with: CvT, PVT v1, ViT, DeiT, MobileNetV3."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List models with size, cost and published accuracy: CMT and CeiT; a filter searches the ladder and peers too."""
    from cmtvision.cli import output

    found = [_row(name) for name in _chosen(pattern, peers)]
    if json:
        output.result_json(found)
        return
    rows = [
        [
            row["name"],
            row["family"],
            "-" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M",
            "-" if row["gmacs"] is None else f"{row['gmacs']:.3f}",
            str(row["input_size"][-1]),
            "-" if row["paper_top1"] is None else f"{row['paper_top1']:.2f}".removesuffix("0"),
            "released" if row["weights"] else "-",
            row["made_by"],
        ]
        for row in found
    ]
    columns = ["model", "family", "parameters", "GMACs", "input px", "published top-1 %", "weights", "made by"]
    output.table(columns, rows, right=columns[2:6])
    for missing in dict.fromkeys(row["missing"] for row in found if row["missing"]):
        output.note(missing)
    if pattern is None:
        more = "the ladder from DeiT to CMT: cmtvision models ladder"
        output.note(more if peers else f"{more}; the systems CMT is compared with: cmtvision models --peers")


def _chosen(pattern: str | None, peers: bool) -> list[str]:
    """Names to list, ours first: all but the ladder, with or without peers; or what the filter finds among all."""
    from fnmatch import fnmatchcase

    from cmtvision.errors import ConfigError
    from cmtvision.models import list_models
    from cmtvision.models.peers.systems import SYSTEMS
    from cmtvision.models.registry import FAMILIES

    others = [system.name for system in SYSTEMS if system.made_by != "ours"]
    ours = [name for name in list_models() if name not in others]
    if pattern is None:
        return [*(name for name in ours if "_ladder_" not in name), *(others if peers else [])]
    wanted = pattern if set("*?[") & set(pattern) else f"*{pattern}*"
    names = [name for name in [*ours, *others] if fnmatchcase(name, wanted)]
    if not names:
        raise ConfigError(
            f"no model of ours matches {pattern!r}; ours: {', '.join(FAMILIES)}, and `cmtvision models --peers`. "
            "Any name of timm.list_models() works in train and info too"
        )
    return names


def _row(name: str) -> dict[str, Any]:
    """What the table says of one model; without sizes where the package that makes it is not installed."""
    import timm

    from cmtvision.errors import ConfigError
    from cmtvision.models import build_shapes_only
    from cmtvision.models.analysis.count import count, total
    from cmtvision.models.peers.published import find_published
    from cmtvision.models.peers.systems import find_system

    cfg: Any = timm.get_pretrained_cfg(name)
    system, published = find_system(name), find_published(name)
    row: dict[str, Any] = {
        "name": name,
        "family": system.family,
        "made_by": system.made_by,
        "note": system.note,
        "parameters": None,
        "gmacs": None,
        "input_size": list(cfg.input_size),
        "paper_top1": published.top1 if published else None,
        "weights": cfg.url or (f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else None),
        "missing": None,
    }
    try:
        model, input_size = build_shapes_only(name)
    except ConfigError as error:
        return {**row, "missing": str(error)}
    whole = total(count(model, input_size))
    return {**row, "parameters": whole.parameters, "gmacs": whole.macs / 1e9}

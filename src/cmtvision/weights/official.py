"""The layout of the released checkpoints, read and written without loss.

Their names are those of the released code: stages are letters, ``blocks_x.i.proj`` is the LPU's convolution,
``attn.sr`` the reduction of keys and values, ``_fc``/``_bn`` the 1x1 convolution before pooling. Their position
bias is a flat matrix (heads, queries, keys) over square grids; ours keeps the grids, (1, heads, Hq, Wq, Hk, Wk).
"""

import math
import re
from collections.abc import Mapping

import torch

from cmtvision.errors import CheckpointError

_STAGES = "abcd"

# (released prefix, our prefix); {stage} is a letter there and a number here, {block} a number in both.
# In the order of the released files, which to_official keeps.
_NAMES: list[tuple[str, str]] = [
    ("relative_pos_{stage}", "stages.{stage}.position_bias.table"),
    ("stem_conv{n}.", "stem.conv{n}."),
    ("stem_norm{n}.", "stem.norm{n}."),
    ("patch_embed_{stage}.proj.", "stages.{stage}.downsample.conv."),
    ("patch_embed_{stage}.norm.", "stages.{stage}.downsample.norm."),
    ("blocks_{stage}.{block}.norm1.", "stages.{stage}.blocks.{block}.norm1."),
    ("blocks_{stage}.{block}.attn.q.", "stages.{stage}.blocks.{block}.lmhsa.q."),
    ("blocks_{stage}.{block}.attn.k.", "stages.{stage}.blocks.{block}.lmhsa.k."),
    ("blocks_{stage}.{block}.attn.v.", "stages.{stage}.blocks.{block}.lmhsa.v."),
    ("blocks_{stage}.{block}.attn.proj.", "stages.{stage}.blocks.{block}.lmhsa.proj."),
    ("blocks_{stage}.{block}.attn.sr.0.", "stages.{stage}.blocks.{block}.lmhsa.kv_conv."),
    ("blocks_{stage}.{block}.attn.sr.1.", "stages.{stage}.blocks.{block}.lmhsa.kv_norm."),
    ("blocks_{stage}.{block}.norm2.", "stages.{stage}.blocks.{block}.norm2."),
    ("blocks_{stage}.{block}.mlp.conv1.0.", "stages.{stage}.blocks.{block}.irffn.expand."),
    ("blocks_{stage}.{block}.mlp.conv1.2.", "stages.{stage}.blocks.{block}.irffn.expand_norm."),
    ("blocks_{stage}.{block}.mlp.proj.", "stages.{stage}.blocks.{block}.irffn.conv."),
    ("blocks_{stage}.{block}.mlp.proj_bn.", "stages.{stage}.blocks.{block}.irffn.conv_norm."),
    ("blocks_{stage}.{block}.mlp.conv2.0.", "stages.{stage}.blocks.{block}.irffn.project."),
    ("blocks_{stage}.{block}.mlp.conv2.1.", "stages.{stage}.blocks.{block}.irffn.project_norm."),
    ("blocks_{stage}.{block}.proj.", "stages.{stage}.blocks.{block}.lpu.conv."),
    ("_fc.", "final.conv."),
    ("_bn.", "final.norm."),
    ("head.", "head."),
]
_PARTS = ("relative", "stem", "patch", "blocks", "_fc.", "_bn.", "head.")
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def is_official(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether the names are those of the released code."""
    return any(name.startswith("stem_conv1.") for name in state_dict)


def from_official(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Released names and shapes -> ours. Raises CheckpointError naming what the released code never had."""
    rules = [(_pattern(theirs, r"(?P<stage>[abcd])"), ours) for theirs, ours in _NAMES]
    converted = {}
    for name, value in state_dict.items():
        ours, match = _rename(name, rules, "released CMT layout")
        stage = match.groupdict().get("stage")
        ours = ours.replace("{stage}", str(_STAGES.index(stage))) if stage else ours
        converted[ours] = _unflatten_bias(name, value) if name.startswith("relative_pos_") else value
    return converted


def to_official(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names and shapes -> released, in the released order.

    Raises:
        CheckpointError: the released layout has no place for a tensor.
    """
    rules = [(_pattern(ours, r"(?P<stage>[0-3])"), theirs) for theirs, ours in _NAMES]
    converted = {}
    for name, value in state_dict.items():
        theirs, match = _rename(name, rules, "layout of CMT with one position bias a stage (rel_pos='stage')")
        stage = match.groupdict().get("stage")
        theirs = theirs.replace("{stage}", _STAGES[int(stage)]) if stage else theirs
        converted[theirs] = _flatten_bias(name, value) if theirs.startswith("relative_pos_") else value
    return {theirs: converted[theirs] for theirs in sorted(converted, key=_released_place)}


def _released_place(name: str) -> tuple[int | str, ...]:
    """Sort key of a released name: tables, stem, embeddings, blocks, head; in each the stage, the number, the rule."""
    for rule, (theirs, _) in enumerate(_NAMES):
        match = _pattern(theirs, r"(?P<stage>[abcd])").match(name)
        if match:
            groups = match.groupdict()
            part = _PARTS.index(theirs.split("_")[0] if not theirs.startswith("_") else theirs)
            number = int(groups.get("n") or groups.get("block") or 0)
            leaf = _LEAVES.index(groups["rest"]) if groups["rest"] in _LEAVES else len(_LEAVES)
            return part, groups.get("stage") or "", number, rule, leaf
    raise AssertionError(f"{name} was made by a rule")


def _pattern(prefix: str, stage: str) -> re.Pattern[str]:
    pattern = re.escape(prefix).replace(r"\{stage\}", stage)
    pattern = pattern.replace(r"\{block\}", r"(?P<block>\d+)").replace(r"\{n\}", r"(?P<n>[123])")
    return re.compile(pattern + ("(?P<rest>.+)" if prefix.endswith(".") else "(?P<rest>)$"))


def _rename(name: str, rules: list[tuple[re.Pattern[str], str]], layout: str) -> tuple[str, re.Match[str]]:
    for pattern, target in rules:
        match = pattern.match(name)
        if match:
            groups = match.groupdict()
            renamed = target
            for key in ("block", "n"):
                if groups.get(key):
                    renamed = renamed.replace("{" + key + "}", groups[key])
            return renamed + groups["rest"], match
    raise CheckpointError(f"{name!r} is not in the {layout}")


def _unflatten_bias(name: str, table: torch.Tensor) -> torch.Tensor:
    heads, queries, keys = table.shape
    query_side, key_side = math.isqrt(queries), math.isqrt(keys)
    if query_side**2 != queries or key_side**2 != keys:
        raise CheckpointError(
            f"{name}: {queries} queries and {keys} keys are not square grids, as the released code has"
        )
    return table.reshape(1, heads, query_side, query_side, key_side, key_side)


def _flatten_bias(name: str, table: torch.Tensor) -> torch.Tensor:
    _, heads, *grids = table.shape
    if grids[0] != grids[1] or grids[2] != grids[3]:
        raise CheckpointError(
            f"{name}: grids {grids} are not square; the released layout cannot say which side is which"
        )
    return table.reshape(heads, grids[0] * grids[1], grids[2] * grids[3])

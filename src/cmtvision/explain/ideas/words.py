"""The page's sentences, chosen by what was measured on this photo and by whether the weights were trained."""

import math
from collections.abc import Sequence

from cmtvision.explain.ideas.choices import Choice
from cmtvision.explain.ideas.measures import (
    ALIKE,
    Silenced,
    between_positions,
    evenness,
    followers,
    moved_by_bias,
    spread,
)
from cmtvision.explain.ideas.trace import LocalTrace, Trace

NOTHING, LITTLE, CLEAR = 0.01, 0.05, 0.2
"""Shares below which an effect is called next to nothing, little, and clear; above, it is strong."""

EVEN, SELECTIVE = 0.98, 0.7
"""Evenness of attention above which it is called even, and below which it looks at few keys."""


def percent(share: float) -> str:
    """A share as text: two digits that count, '<0.1%' below a thousandth."""
    if share == 0:
        return "0%"
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{100 * share:.1f}%" if share < 0.1 else f"{100 * share:.0f}%"


def number(value: float, digits: int) -> str:
    """A number with a real minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def times(*sizes: int) -> str:
    """Sizes as the page writes them: 40 by 40."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes))


def between(shares: Sequence[float]) -> str:
    """'6.2% to 21%', or one of them where they read the same."""
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def size_of(share: float) -> str:
    """How large an effect is, in words."""
    if share < NOTHING:
        return "changes next to nothing"
    how = "a little" if share < LITTLE else "clearly" if share < CLEAR else "strongly"
    return f"changes the map {how}"


def banner(trained: bool, name: str, answer: tuple[str, float] | None) -> str:
    """What the reader must know before anything else."""
    if not trained:
        return (
            "Nothing on this page was learned: the weights are random draws. What you see is what the architecture "
            "alone does with a photo: where resolution goes, who has which neighbours, who may look at whom. Whatever "
            "looks like understanding is chance."
        )
    said = f" It takes this photo for {answer[0]} ({percent(answer[1])})." if answer else ""
    return f"The weights are those of {name}, learned from photos.{said}"


def stem(trace: Trace, trained: bool) -> str:
    """How many of the stem's maps look like the photo."""
    total = len(trace.stem[-1])
    bright, edges = followers(trace.stem[-1], trace.image)
    if bright + edges == 0:
        said = f"None of the {total} maps follows the photo's brightness or edges (a correlation of {ALIKE} or more). "
    else:
        said = (
            f"Of the {total} maps, {_follow(bright)} the photo's brightness, {_follow(edges)} its edges (a correlation "
            f"of {ALIKE} or more), and {total - bright - edges} neither. "
        )
    if trained:
        return said + "The filters were learned: look for what they keep of the photo, and what they drop."
    return said + "The filters are random, and a photo shows through almost any filter."


def _follow(number: int) -> str:
    return f"{number or 'none'} follow{'s' if number < 2 else ''}"


def pyramid(trace: Trace) -> str:
    """Whether positions grow alike on the way."""
    shares = [between_positions(one) for one in trace.stages]
    listed = ", ".join(percent(share) for share in shares[:-1]) + f" and {percent(shares[-1])}"
    said = f"Of each map's energy, {listed} differs between positions, stage by stage. "
    if trace.stages[-1].shape[1:].numel() == 1:
        return said + "Stage 4 has a single position left here, so nothing can differ in it."
    if shares[-1] < 0.75 * shares[0]:
        return said + "Positions grow alike: the last map describes the image more than its parts."
    if shares[-1] > shares[0] / 0.75:
        return said + "Positions grow apart: the last map still says where things are."
    return said + "Positions stay about as different as they were."


def local(trace: Trace, parts: Sequence[LocalTrace], trained: bool) -> str:
    """How much depthwise convolutions add to what they are given."""
    shares = [part.change for part in parts]
    strongest = max(range(len(shares)), key=shares.__getitem__)
    median = sorted(shares)[len(shares) // 2]
    said = (
        f"Over the {len(shares)} blocks the convolution adds {between(shares)} of its input's norm, most in "
        f"{trace.blocks[strongest].name}. In the median block that is {percent(median)}: it {size_of(median)}. "
    )
    widths = [len(part.kernel) for part in parts]
    if trained or any(not is_near(float(part.kernel.std()), math.sqrt(2 / 9 / len(part.kernel))) for part in parts):
        return said
    low, high = (math.sqrt(2 / width) for width in (max(widths), min(widths)))
    return said + (
        "The kernels are random draws with a variance of 2/(9C) for C channels, which lets one expect √(2/C): "
        f"{percent(low)} at {max(widths):,} channels, {percent(high)} at {min(widths):,}. Training starts from here."
    )


def is_near(value: float, expected: float) -> bool:
    """Whether a measured spread is that of an untouched initialisation."""
    return 0.8 * expected < value < 1.2 * expected


def attention(trace: Trace, trained: bool) -> str:
    """How evenly positions look, over all blocks, and how evenly they would without B."""
    some = [block.attention for block in trace.blocks if block.attention.scores.shape[-1] > 1]
    if not some:
        return "There is only one key in every stage, so every position looks at it."
    shares, alone = [evenness(one) for one in some], [evenness(one, with_bias=False) for one in some]
    said = f"Attention is {between(shares)} even, where 100% means the same for all keys and 0% all on one"
    said += f"; without B it would be {between(alone)}. " if some[0].bias is not None else ". "
    low = min(shares)
    if low > EVEN:
        return said + "Every position looks at all keys almost alike, everywhere in this network."
    said += "Positions look at many keys, with preferences. " if low > SELECTIVE else "Some blocks look at few keys. "
    if some[0].bias is not None and min(alone) > EVEN:
        return said + "The preferences are those of B: the content has next to none of its own."
    return said + ("What the content prefers was learned." if trained else "What the content prefers is chance.")


def bias(trace: Trace, trained: bool) -> str:
    """How far B is from zero, against the content, and how much attention it moves."""
    some = [block.attention for block in trace.blocks if block.attention.bias is not None]
    some = [one for one in some if one.scores.shape[-1] > 1]
    if not some:
        return ""
    tables = [spread(one.bias) for one in some if one.bias is not None]
    if max(tables) < 1e-6:
        return "B is zero everywhere here: this network starts from a table of zeros, and with it nothing changes."
    contents = [spread(one.scores) for one in some]
    moved = [moved_by_bias(one) for one in some]
    said = (
        f"Over the keys of a query, B has a standard deviation of {_range(tables)}, the content {_range(contents)}. "
        f"B moves {between(moved)} of the attention to other keys. "
    )
    stronger = sum(table > content for table, content in zip(tables, contents, strict=True))
    if stronger == len(some):
        said += "In every block B weighs more than the content: where a key lies decides more than what is there."
    elif stronger == 0:
        said += "In every block the content weighs more than B: what is there decides more than where it lies."
    else:
        said += f"B weighs more than the content in {stronger} of {len(some)} blocks."
    if all(is_near(table, 1.0) for table in tables):
        said += " It is drawn with a standard deviation of 1, " + (
            "and is still about there: much of it may be the noise that it began with."
            if trained
            else "so before training its preferences are noise."
        )
    return said


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def silenced(found: Sequence[Silenced], trained: bool) -> str:
    """Which idea the answer owes most to."""
    if not found:
        return ""
    most, least = max(found, key=lambda one: one.change), min(found, key=lambda one: one.change)
    said = f"Without {most.idea} the logits change most, by {percent(most.change)} of their norm"
    said += f"; without {least.idea} least, by {percent(least.change)}. " if most is not least else ". "
    if trained:
        return said + "This is one photo; over many, see the page on the ideas at work in the documentation."
    return said + "With random weights that says how strongly the parts are wired in, not what they are good for."


def thinned(chosen: Sequence[Choice]) -> str:
    """What a reader cannot choose because the page would be too large, '' where all can be chosen."""
    parts = []
    for one in chosen:
        if one.cell != (1, 1):
            parts.append(f"stage {one.stage} offers one position of every {times(*one.cell)}")
        if len(one.blocks) < one.num_blocks:
            parts.append(f"stage {one.stage} offers {len(one.blocks)} of its {one.num_blocks} blocks")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

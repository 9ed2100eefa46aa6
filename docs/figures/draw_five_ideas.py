# ruff: noqa: E501, RUF001, RUF007
"""Draw five-ideas.svg: the way of a photo through CMT-S, with the paper's five ideas numbered.

    python docs/figures/draw_five_ideas.py

Plain strings, no libraries. The drawing brings its own light background, so it reads the same in light and dark mode.
"""

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1200, 1108
INK, MUTED, PANEL, PAPER = "#1c1e21", "#555b63", "#f3f5f8", "#ffffff"
COLOURS = {1: "#0b62a8", 2: "#7a4fa3", 3: "#9a5b00", 4: "#b0305c", 5: "#1b7a4b"}
TINTS = {0: "#e9ecf0", 1: "#dcebf8", 2: "#eee6f6", 3: "#fbead0", 4: "#fae0e8", 5: "#d9f1e4"}
MIDDLE = 208  # y of the boxes in the first row

IDEAS = {
    1: (
        "Convolutional stem",
        "Three small convolutions look at edges and texture first. The photo is not cut into patches, as in other vision",
        "transformers, so nothing is torn apart at the border of a patch.",
    ),
    2: (
        "Stages like a pyramid",
        "Each of four stages halves the grid and doubles the channels: fine detail early, whole objects late. Detection and",
        "segmentation can take the map of every stage.",
    ),
    3: (
        "Local Perception Unit (LPU)",
        "Before attention, every position looks at its eight neighbours and adds what it saw to itself. So the network knows",
        "local shapes, and where it is, without numbering the positions.",
    ),
    4: (
        "Lightweight attention (LMHSA)",
        "Every position gathers what it needs from the whole photo, however far away. It asks a 7×7 summary instead of all",
        "positions, which keeps it cheap, and a learned position bias says which places matter to which.",
    ),
    5: (
        "Inverted-residual feed-forward network (IRFFN)",
        "Every position works on what it gathered: four times more channels, one more look at the neighbours with a shortcut",
        "around it, and back. In a plain transformer no position sees its neighbours here.",
    ),
}


def text(
    x: float, y: float, words: str, size: int = 17, anchor: str = "middle", fill: str = INK, bold: bool = False
) -> str:
    """One line of words; y is its baseline."""
    weight = ' font-weight="700"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{weight}>{escape(words)}</text>'
    )


def box(x: float, y: float, w: float, h: float, fill: str, stroke: str = INK, radius: float = 6) -> str:
    """A rounded rectangle."""
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius}" fill="{fill}" stroke="{stroke}" stroke-width="1.6"/>'


def path(d: str, arrow: bool = True, dash: str = "", colour: str = INK) -> str:
    """A line, with an arrow at its end unless told otherwise."""
    extra = (' marker-end="url(#arrow)"' if arrow else "") + (f' stroke-dasharray="{dash}"' if dash else "")
    return f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="1.8"{extra}/>'


def number(x: float, y: float, idea: int) -> str:
    """The number of an idea in its colour."""
    return f'<circle cx="{x}" cy="{y}" r="15" fill="{COLOURS[idea]}"/>' + text(
        x, y + 6, str(idea), 18, fill=PAPER, bold=True
    )


def plus(x: float, y: float) -> str:
    """Where a shortcut is added."""
    cross = path(f"M{x - 8} {y}H{x + 8}M{x} {y - 8}V{y + 8}", arrow=False)
    return f'<circle cx="{x}" cy="{y}" r="14" fill="{PAPER}" stroke="{INK}" stroke-width="1.8"/>{cross}'


def pile(x: float, side: float, sheets: int, idea: int) -> str:
    """A map: its side for the grid, the sheets behind it for the channels."""
    stroke = COLOURS.get(idea, INK)
    top = MIDDLE - side / 2
    return "".join(
        box(x - side / 2 + 5 * i, top - 5 * i, side, side, TINTS[idea], stroke) for i in reversed(range(sheets))
    )


def way() -> list[str]:
    """The first row: image to classes."""
    columns = [
        (88, 128, 1, 0, "photo", "224×224×3"),
        (236, 104, 2, 1, "stem", "112×112×32"),
        (376, 92, 3, 2, "stage 1", "56×56×64"),
        (504, 80, 4, 2, "stage 2", "28×28×128"),
        (628, 70, 5, 2, "stage 3", "14×14×256"),
        (750, 60, 6, 2, "stage 4", "7×7×512"),
        (874, 60, 8, 0, "1×1 conv", "7×7×1280"),
    ]
    parts = [pile(x, side, sheets, idea) for x, side, sheets, idea, _, _ in columns]
    for (x, side, sheets, *_), (after, next_side, *_) in zip(columns, columns[1:], strict=False):
        parts.append(path(f"M{x + side / 2 + 5 * (sheets - 1) + 4} {MIDDLE}H{after - next_side / 2 - 7}"))
    parts.append(path(f"M{874 + 30 + 39} {MIDDLE}H978"))
    parts += [box(984, MIDDLE - 50, 22, 100, TINTS[0]), path(f"M1010 {MIDDLE}H1062")]
    parts += [box(1068, MIDDLE - 50 + 26 * i, 86, 22, TINTS[0]) for i in range(4)]
    parts += [text(1111, MIDDLE - 34 + 26 * i, word, 15) for i, word in enumerate(("cat", "dog", "shirt", "…"))]
    for x, _, _, _, name, shape in [*columns, (995, 0, 0, 0, "mean", "1280"), (1111, 0, 0, 0, "classes", "e.g. 1000")]:
        parts += [text(x, MIDDLE + 92, name, 18, bold=True), text(x, MIDDLE + 115, shape, 17, fill=MUTED)]
    # the photo
    parts.append(f'<circle cx="120" cy="{MIDDLE - 32}" r="13" fill="#e0a100"/>')
    parts.append(f'<path d="M28 {MIDDLE + 60}l34 -62 26 40 18 -24 42 46z" fill="#7d9a84"/>')
    parts += [text(236, MIDDLE - 2, "three 3×3", 17), text(236, MIDDLE + 19, "convs", 17)]
    for x, depth in ((376, 3), (504, 3), (628, 16), (750, 3)):
        parts += [text(x, MIDDLE - 1, f"{depth} ×", 17), text(x, MIDDLE + 19, "block", 17)]
    parts += [number(190, MIDDLE - 74, 1)]
    brace = f"M330 {MIDDLE - 82}v-10H812v10"
    parts += [path(brace, arrow=False, colour=COLOURS[2]), number(420, MIDDLE - 92, 2)]
    parts.append(text(627, MIDDLE - 102, "half the grid, twice the channels, four times", 16, fill=COLOURS[2]))
    return parts


def block() -> list[str]:
    """The second row: one block."""
    y, top = 448, 368
    parts = [path(f"M{628 - 35} {MIDDLE + 122}L60 {top}M{628 + 35} {MIDDLE + 122}L1140 {top}", False, "5 5", MUTED)]
    parts += [
        box(24, top, 1152, 326, PANEL, "#c9ced6", 12),
        text(48, top + 32, "One block", 19, "start", bold=True),
        text(1156, top + 28, "LN: layer norm", 15, "end", MUTED),
    ]
    parts += [
        path(f"M48 {y}H118"),
        box(124, y - 28, 150, 56, TINTS[3], COLOURS[3]),
        text(199, y + 7, "LPU", 20, bold=True),
    ]
    parts += [path(f"M274 {y}H344"), box(350, y - 22, 58, 44, PAPER), text(379, y + 6, "LN"), path(f"M408 {y}H440")]
    parts += [box(446, y - 28, 150, 56, TINTS[4], COLOURS[4]), text(521, y + 7, "LMHSA", 20, bold=True)]
    parts += [path(f"M596 {y}H634"), plus(654, y), path(f"M668 {y}H730"), box(736, y - 22, 58, 44, PAPER)]
    parts += [text(765, y + 6, "LN"), path(f"M794 {y}H826"), box(832, y - 28, 150, 56, TINTS[5], COLOURS[5])]
    parts += [text(907, y + 7, "IRFFN", 20, bold=True), path(f"M982 {y}H1020"), plus(1040, y), path(f"M1054 {y}H1150")]
    for start, end in ((312, 654), (700, 1040)):
        parts.append(path(f"M{start} {y}V{y - 46}H{end}V{y - 21}"))
        parts.append(f'<circle cx="{start}" cy="{y}" r="4" fill="{INK}"/>')
    parts += [number(124, y - 28, 3), number(446, y - 28, 4), number(832, y - 28, 5)]
    parts += [text(483, y - 53, "shortcut", 15, fill=MUTED), text(870, y - 53, "shortcut", 15, fill=MUTED)]
    return parts + details(y + 60)


def grid(x: float, y: float, cells: int, cell: float, fill: str, stroke: str) -> str:
    """A square grid of cells."""
    lines = "".join(f"M{x + i * cell} {y}v{cells * cell}M{x} {y + i * cell}h{cells * cell}" for i in range(cells + 1))
    return (
        f'<rect x="{x}" y="{y}" width="{cells * cell}" height="{cells * cell}" fill="{fill}"/>'
        f'<path d="{lines}" stroke="{stroke}" stroke-width="1" fill="none"/>'
    )


def details(y: float) -> list[str]:
    """What is inside LPU, LMHSA and IRFFN."""
    parts = [path(f"M{x} {y - 32}V{y}", False, "3 4", COLOURS[idea]) for x, idea in ((199, 3), (521, 4), (907, 5))]
    spans = ((44, 268, 3), (328, 400, 4), (744, 412, 5))
    parts += [box(x, y, w, 170, PAPER, COLOURS[idea], 8) for x, w, idea in spans]
    # LPU
    parts += [grid(134, y + 14, 3, 28, TINTS[3], COLOURS[3])]
    parts.append(f'<rect x="162" y="{y + 42}" width="28" height="28" fill="{COLOURS[3]}"/>')
    parts += [text(178, y + 128, "3×3 conv, every channel", 17), text(178, y + 151, "by itself, + its input", 17)]
    # LMHSA
    parts += [grid(352, y + 16, 14, 6, TINTS[4], COLOURS[4]), grid(512, y + 37, 7, 6, TINTS[4], COLOURS[4])]
    parts += [path(f"M506 {y + 58}H442", colour=COLOURS[4]), text(474, y + 48, "answers", 14, fill=COLOURS[4])]
    parts += [text(562, y + 44, "keys and values:", 16, "start"), text(562, y + 66, "7×7 in each stage", 16, "start")]
    parts += [text(350, y + 128, "queries: every position (14×14 in stage 3)", 17, "start")]
    parts += [text(350, y + 151, "+ learned bias for each pair of places", 17, "start")]
    # IRFFN
    bars = ((760, 24, "1×1 conv"), (870, 92, "3×3 conv"), (980, 92, "1×1 conv"), (1112, 24, ""))
    for x, height, _ in bars:
        parts.append(box(x, y + 76 - height / 2, 24, height, TINTS[5], COLOURS[5], 3))
    for (x, _, word), (after, _, _) in zip(bars, bars[1:], strict=False):
        parts += [path(f"M{x + 27} {y + 76}H{after - 6}", colour=COLOURS[5])]
        parts += [text((x + 24 + after) / 2, y + 68, word, 15)]
    parts += [
        path(f"M882 {y + 28}V{y + 14}H992V{y + 24}", colour=COLOURS[5]),
        text(937, y + 46, "+ input", 15, fill=MUTED),
    ]
    parts += [text(950, y + 151, "channels in stage 3: 256 → 1024 → 1024 → 256", 16)]
    return parts


def sentences() -> list[str]:
    """The last row: each idea in plain words."""
    parts = []
    for idea, (name, first, second) in IDEAS.items():
        y = 732 + (idea - 1) * 76
        parts += [number(44, y, idea), text(74, y + 6, name, 19, "start", COLOURS[idea], bold=True)]
        parts += [text(74, y + 28, first, 17, "start"), text(74, y + 49, second, 17, "start")]
    return parts


def drawing() -> str:
    """The whole SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-labelledby="title desc" font-family="DejaVu Sans, Verdana, Segoe UI, Helvetica, sans-serif">',
        '<title id="title">CMT-S: the way of a photo from pixels to classes, and the five ideas</title>',
        '<desc id="desc">A photo of 224 by 224 pixels passes a stem of three convolutions (112 by 112 by 32), four stages '
        "(56 by 56 by 64, 28 by 28 by 128, 14 by 14 by 256, 7 by 7 by 512), a 1 by 1 convolution to 1280 channels, a mean "
        "over the grid, and a linear classifier. A block is LPU, then LayerNorm and LMHSA with a shortcut, then LayerNorm "
        "and IRFFN with a shortcut. "
        + " ".join(f"{i}. {name}: {first} {second}" for i, (name, first, second) in IDEAS.items())
        + "</desc>",
        f'<defs><marker id="arrow" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>',
        box(1, 1, WIDTH - 2, HEIGHT - 2, PAPER, "#c9ced6", 14),
        text(28, 44, "CMT-S: from a photo to a class", 26, "start", bold=True),
        text(28, 72, "Width × height × channels stand under each step.", 17, "start", MUTED),
        *way(),
        *block(),
        *sentences(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("five-ideas.svg").write_text(drawing(), encoding="utf-8")

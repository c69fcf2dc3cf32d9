"""How a method looks, on the page of all results and in every figure: one colour and one marker, by its name alone."""

from __future__ import annotations

from math import cos, pi, sin
from zlib import crc32

# Okabe & Ito without their yellow, grey, wine, then darker ones; one more method changes none of the others.
STYLES = {
    "baseline": ("#000000", "h"), "random": ("#6E6E6E", "X"), "from scratch": ("#CC79A7", "D"),
    "l1": ("#009E73", "^"), "l1std": ("#E69F00", "v"), "ga": ("#0072B2", "o"), "hgsr": ("#D55E00", "s"),
    "sfp": ("#56B4E9", "p"), "slimming": ("#882255", "P"), "apoz": ("#8C564B", "*"), "bn_tells": ("#999933", "d"),
    "taylor2016": ("#5B4FBF", "<"), "taylor2019": ("#AA4499", ">"), "fpgm": ("#117733", "8"), "hrank": ("#1B4F72", "H"),
    "thinet": ("#44AA99", (7, 0, 0)), "lasso": ("#661100", (5, 0, 180)), "group_fisher": ("#332288", (7, 1, 0)),
    "filtersketch": ("#A6761D", (9, 1, 0)), "orthoreg": ("#66A61E", (5, 1, 180)),
    "group_sparse": ("#E7298A", (4, 1, 45)), "scop": ("#7570B3", (9, 0, 0)), "kdfs": ("#B15928", (10, 1, 0)),
    "ucp": ("#1F78B4", (12, 1, 0)), "acp": ("#6A3D9A", (6, 1, 30)), "manidp": ("#33A02C", (3, 1, 180)),
    "cap": ("#E31A1C", (10, 0, 0)), "divnet": ("#FF7F00", (11, 1, 0)), "ascp": ("#01665E", (6, 1, 15)),
    "snpfi": ("#C51B7D", (4, 1, 20)), "netadjust": ("#4D9221", (13, 1, 0)), "cacp": ("#8C510A", (5, 0, 36)),
    "dns": ("#2166AC", (3, 0, 45)), "iht": ("#B2182B", (3, 0, 135)), "obs": ("#542788", (4, 0, 20)),
    "deepcomp": ("#35978F", (7, 0, 25)), "crossfilter": ("#BF812D", (8, 1, 22))}
STAR = 0.45                         # inner radius over the outer one
POLYGONS = {                        # marker of matplotlib -> corners, is it a star, turned by (degrees, clockwise)
    "^": (3, 0, 0), "v": (3, 0, 180), "<": (3, 0, -90), ">": (3, 0, 90), "s": (4, 0, 45), "D": (4, 0, 0),
    "p": (5, 0, 0), "h": (6, 0, 0), "H": (6, 0, 30), "8": (8, 0, 22.5), "*": (5, 1, 0), "o": (32, 0, 0)}
STARS = [(corners, 1, 0) for corners in (3, 4, 6, 8)]              # matplotlib names them so itself
PATHS = {"d": "M0-7L4 0L0 7L-4 0Z", "P": "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
         "X": "M-6-3.5L-3.5-6L0-2.5L3.5-6L6-3.5L2.5 0L6 3.5L3.5 6L0 2.5L-3.5 6L-6 3.5L-2.5 0Z"}
OTHERS = [(colour, marker) for marker in STARS for colour, _ in STYLES.values()]


def style(series: str) -> tuple[str, str | tuple[int, int, int]]:
    """Colour and marker. What was trained from fresh weights looks alike, whatever found the widths; a control looks as
    its method does.

    >>> style("sfp from scratch (control)") == style("l1 from scratch") == STYLES["from scratch"]
    True
    """
    name = series.removesuffix(" (control)")
    name = "from scratch" if name.endswith("from scratch") else name
    return STYLES.get(name) or OTHERS[crc32(name.encode()) % len(OTHERS)]


def outline(marker: str | tuple[int, int, int]) -> str:
    """A marker as a path of SVG around 0, 0.

    >>> outline("s")
    'M4.2-4.2L4.2 4.2L-4.2 4.2L-4.2-4.2Z'
    """
    if marker in PATHS:
        return PATHS[marker]
    corners, star, turn = POLYGONS.get(marker, marker)
    size = 5.0 if marker == "o" else 7.0 if star else 6.0
    points = []
    for at in range(corners * (1 + star)):
        angle = pi * (turn / 180 + 2 * at / (corners * (1 + star)))
        radius = size * (STAR if star and at % 2 else 1)
        x, y = (round(radius * value, 1) + 0.0 for value in (sin(angle), -cos(angle)))
        points.append(f"{x:g}{'' if y < 0 else ' '}{y:g}")
    return f"M{'L'.join(points)}Z"

"""How a method looks in every figure and on the page: one colour and one marker, found by its name alone, so that one
method more changes none of the others. Plain data: markers are named as matplotlib names them."""

from zlib import crc32

STYLES = {                  # Okabe & Ito, without their yellow; grey and wine
    "baseline": ("#000000", "h"), "random": ("#6E6E6E", "X"), "from scratch": ("#CC79A7", "D"),
    "l1": ("#009E73", "^"), "l1std": ("#E69F00", "v"), "ga": ("#0072B2", "o"), "hgsr": ("#D55E00", "s"),
    "sfp": ("#56B4E9", "p"), "slimming": ("#882255", "P")}
OTHERS = [(colour, marker) for marker in ("<", ">", "d", "8", "*") for colour, _ in STYLES.values()]


def style(series: str) -> tuple[str, str]:
    """Colour and marker. What was trained from fresh weights looks alike, whatever found the widths; a control looks as
    its method does.

    >>> style("sfp from scratch (control)") == style("l1 from scratch") == STYLES["from scratch"]
    True
    """
    name = series.removesuffix(" (control)")
    name = "from scratch" if name.endswith("from scratch") else name
    return STYLES.get(name) or OTHERS[crc32(name.encode()) % len(OTHERS)]

"""Pictures as a page has them, taken apart."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from leanear.benchmarks.report.drawing.plotting import Picture, svgs

HANDLE_PX = 15  # a line in a legend
COLOURS = r"var\(--(slim|bad|query-key|value-output|s1|dense)\)"


def drawn(picture: Picture, form: str = "wide") -> ElementTree.Element:
    """The SVG of a picture for wide or narrow pages."""
    return ElementTree.fromstring(dict(svgs(picture))[form])


def dots(root: ElementTree.Element) -> list[tuple[float, float]]:
    """Where the dots of curves are, in the order in which they were drawn."""
    marks = [each for each in root.iter("use") if re.search(COLOURS, each.get("style") or "")]
    return [(float(mark.get("x") or "nan"), float(mark.get("y") or "nan")) for mark in marks]


def lines(root: ElementTree.Element) -> list[tuple[str, bool, list[tuple[float, float]]]]:
    """The curves: colour, whether dashed, and where their points are."""
    found = []
    for path in root.iter("path"):
        style = path.get("style") or ""
        colour = re.search(f"stroke:{COLOURS}", style)
        points = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path.get("d") or "")
        places = [(float(x), float(y)) for x, y in points]
        in_legend = len(places) == 3 and places[2][0] - places[0][0] <= HANDLE_PX
        if colour and "stroke-width:2" in style and "fill:none" in style and not in_legend:
            found.append((colour[1], "dasharray" in style, places))
    return found


def texts(root: ElementTree.Element) -> list[str]:
    """All that is written in it."""
    return ["".join(text.itertext()) for text in root.iter("text")]

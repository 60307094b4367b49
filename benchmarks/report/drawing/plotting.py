"""Matplotlib's figures as inline SVG: colours are the page's variables, so that light, dark and paper fit."""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Sequence

from leanear.runtimes.errors import RuntimeUnavailable

WIDE, NARROW = 720, 336  # px of a picture on a screen or on paper, and on a telephone
FONT_PX = 12
LEGEND_LINE = 20
THEME = (
    "ink", "soft", "rule", "track", "sheet", "dense", "slim", "bad", "query-key", "value-output",
    "s0", "s1", "s3", "s4", "s5",
)  # fmt: skip
RECTANGLE = re.compile(r"M (\S+) (\S+) L (\S+) \2 L \3 (\S+) L \1 \4(?: L \1 \2)? z")
PLACEHOLDERS = {name: f"#{number:06x}" for number, name in enumerate(THEME, 1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be found and read out
    "text.parse_math": False,  # a name may hold a dollar
    "figure.dpi": 72,  # so that a point is a pixel
    "font.family": "DejaVu Sans",  # what text is measured in; browsers' own fonts are as wide or narrower
    "font.size": FONT_PX,
    "text.color": PLACEHOLDERS["ink"],
    "axes.edgecolor": PLACEHOLDERS["soft"],
    "axes.labelcolor": PLACEHOLDERS["soft"],
    "axes.titlelocation": "left",
    "axes.titlesize": FONT_PX,
    "axes.titleweight": "bold",
    "axes.titlecolor": PLACEHOLDERS["ink"],
    "axes.labelsize": FONT_PX,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": PLACEHOLDERS["rule"],
    "grid.linewidth": 1,
    "xtick.color": PLACEHOLDERS["soft"],
    "ytick.color": PLACEHOLDERS["soft"],
    "xtick.labelsize": FONT_PX,
    "ytick.labelsize": FONT_PX,
    "legend.frameon": False,
    "legend.fontsize": FONT_PX,
    "legend.labelcolor": PLACEHOLDERS["ink"],
    "legend.handlelength": 1.2,
    "legend.columnspacing": 1.4,
}


@dataclass(frozen=True)
class Picture:
    """A title, the sentence that says what is seen to those who do not see it, and how it is drawn on a canvas."""

    title: str
    description: str
    draw: Callable[[Canvas], None] = field(compare=False)

    @property
    def said(self) -> str:
        """Title and description as one text."""
        return f"{self.title}. {self.description}"


class Canvas:
    """A figure under way, `width` px wide, whose rows and legend say how high it is."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.narrow = width < WIDE / 2
        self.figure: Any = None
        self.titles: dict[str, str] = {}

    def axes(self, height: float, rows: int = 1) -> Any:
        """Axes of matplotlib, `height` px high with all that is written around them; several rows share x."""
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(self.width / 72, height / 72), layout="constrained")
        self.figure.get_layout_engine().set(w_pad=2 / 72, h_pad=3 / 72)
        return self.figure.subplots(rows, 1, sharex=True)

    def legend(self, handles: Sequence[Any], labels: Sequence[str]) -> None:
        """A legend below everything, in as many columns as there is room for, and the figure so much higher."""
        longest = max(len(label) for label in labels)
        columns = min(len(labels), max(1, int(self.width / (0.62 * FONT_PX * longest + 32))))
        lines = -(-len(labels) // columns)
        width, height = self.figure.get_size_inches()
        self.figure.set_size_inches(width, height + (lines * LEGEND_LINE + 6) / 72)
        self.figure.legend(handles, labels, loc="outside lower left", ncols=columns)

    def tell(self, artist: Any, text: str) -> None:
        """What a reader is told who points at `artist`."""
        name = f"told{len(self.titles)}"
        artist.set_gid(name)
        self.titles[name] = text

    def wrapped(self, name: str, wide: int = 34, narrow: int = 15) -> str:
        """`name` in lines short enough for an axis of names."""
        import textwrap

        return textwrap.fill(name, narrow if self.narrow else wide)

    def count(self, wide: int, narrow: int) -> int:
        """One of two numbers, by the room that there is."""
        return narrow if self.narrow else wide


def colour(name: str) -> str:
    """The colour that stands for a variable of the page's style until the SVG is written."""
    return PLACEHOLDERS[{"model": "slim"}.get(name, name)]


def svgs(picture: Picture) -> Iterator[tuple[str, str]]:
    """A picture for wide and for narrow pages: the class of its element, and its SVG, the same for the same picture.

    Raises:
        RuntimeUnavailable: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
    except ImportError as error:
        raise RuntimeUnavailable(
            f"the HTML report's pictures need matplotlib ({error}); try: pip install matplotlib"
        ) from None
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"{picture.title} {name}"}):
            canvas = Canvas(width)
            picture.draw(canvas)
            written = io.StringIO()
            FigureCanvasSVG(canvas.figure).print_svg(written, metadata={"Date": None})  # savefig draws twice
        yield name, _inline(written.getvalue(), picture, canvas)


def _inline(svg: str, picture: Picture, canvas: Canvas) -> str:
    """An SVG file as an element of a page: no header, no unused names, tenths of pixels, the page's colours."""
    body = svg[svg.index("</metadata>") + len("</metadata>") : svg.rindex("</svg>")]
    body = re.sub(r"<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="(told\d+)">', lambda m: f"<g><title>{html.escape(canvas.titles[m[1]])}</title>", body)
    used = set(re.findall(r"#([\w-]+)[\")]", body))
    body = re.sub(r' id="([\w.-]+)"', lambda m: m[0] if m[1] in used else "", body)
    body = re.sub(r"<[^>]+>", _short_tag, body)
    body = re.sub(r"\s*\n\s*|<g/>", "", body)
    width, height = (72 * inches for inches in canvas.figure.get_size_inches())
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{html.escape(picture.said, quote=True)}">'
        f"{body.strip()}</svg>"
    )


def _short_tag(found: re.Match[str]) -> str:
    """A tag without what the page's style says, with the page's colours."""
    tag = re.sub(r"\s*\n\s*", " ", found[0]).replace("xlink:href", "href")
    tag = re.sub(r"font-family: [^;]*; ", "", tag)
    tag = re.sub(r"(?<=[ \"(,-])\d+\.\d+", lambda m: f"{float(m[0]):.1f}".replace(".0", ""), tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = RECTANGLE.sub(r"M\1 \2H\3V\4H\1z", tag)
    for name, placeholder in PLACEHOLDERS.items():
        tag = tag.replace(placeholder, f"var(--{name})")
    return tag.replace(' "', '"').replace("; ", ";").replace(": ", ":")

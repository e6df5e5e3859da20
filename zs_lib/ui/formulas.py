"""Draw the LaTeX formulas of Markdown as SVG, for pages that run no script."""

from __future__ import annotations

import html
import re

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

SIZE = 16
"""Pixels of the letters: those of the text around them."""
LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)\$", re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_UNKNOWN = re.compile(r"\\(?:[bB]igg?|textstyle)\b")
"""Sizes that matplotlib's mathtext does not know: left out."""


def set_aside(markdown: str, drawn: list[str]) -> str:
    """Replace the formulas by words of their place in `drawn`, which their SVG is added to."""

    def draw(found: re.Match) -> str:
        try:
            drawn.append(svg(found[1] or found[2], display=bool(found[1])))
        except ValueError:  # it stays as it is written
            return found[0]
        return f"FORMULA{len(drawn) - 1}X"

    parts = _CODE.split(markdown)  # every other one is code
    return "".join(part if n % 2 else _FORMULA.sub(draw, part) for n, part in enumerate(parts))


def put_back(page: str, drawn: list[str]) -> str:
    """Replace the words of `set_aside` by what was drawn."""
    return re.sub(r"FORMULA(\d+)X", lambda found: drawn[int(found[1])], page)


def svg(latex: str, display: bool = False) -> str:
    """Draw a formula in the colour of the text around it; on a line of its own with `display`.

    Raises:
        ValueError: matplotlib cannot read it.
    """
    plain = _UNKNOWN.sub("", " ".join(latex.split()))
    if display:
        plain = plain.replace(r"\frac", r"\dfrac")
    path = TextPath((0, 0), f"${plain}$", size=SIZE, prop=FontProperties(math_fontfamily="cm"))
    (left, low), (right, high) = path.get_extents().get_points()
    lines = "".join(
        LETTERS[code] + ("" if code == Path.CLOSEPOLY else _flipped(points))
        for points, code in path.iter_segments(simplify=False)
    )
    width, height = right - left + 1, high - low + 1
    drawn = (
        f'<svg role="img" aria-label="{html.escape(latex)}" width="{width:.1f}" height="{height:.1f}" '
        f'viewBox="{left:.1f} {-high - 0.5:.1f} {width:.1f} {height:.1f}" fill="currentColor" '
        f'style="vertical-align:{low:.1f}px"><path d="{lines}"/></svg>'
    )
    return f'<span class="formula">{drawn}</span>' if display else drawn


def _flipped(points: list[float]) -> str:
    """Points as SVG has them: y grows downwards."""
    return " ".join(f"{-value if n % 2 else value:.1f}" for n, value in enumerate(points))

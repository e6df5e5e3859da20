"""Colours of rendered pages, in the theme of whoever shows them: JupyterLab's light or dark, or none.

Each kind of text has a word as well as a colour (Okabe and Ito's, mixed with the theme's ink and paper until
readable on light and dark).
"""

from __future__ import annotations

KINDS = {
    "think": ("thought", "#808080"),
    "search": ("search", "#0072b2"),
    "documents": ("documents", "#009e73"),
    "answer": ("answer", "#d55e00"),
    "invalid": ("invalid", "#cc79a7"),
}
"""Kind of text → its word, and the colour that its word, edge and ground are mixed from."""
INK, PAPER, RULE = (
    ("--jp-content-font-color1", "#222222"),
    ("--jp-layout-color1", "#ffffff"),
    ("--jp-border-color1", "#bdbdbd"),
)
"""JupyterLab's variables of its theme's colours, and our colours where there is no theme."""
WORD_SHARE, FAINT_SHARE, GROUND_SHARE, SHADE_SHARE = 60, 72, 12, 45
"""Percent of colour in the ink of a word, of ink in faint text, of colour in the paper of a ground, and in
that of a token shaded at full strength."""
TRAINED_UP, TRAINED_DOWN, UNLIKELY = "#0072b2", "#e69f00", "#d55e00"
"""Colours that shaded tokens are mixed from."""


def mixed(color: str, share: float, base: str) -> str:
    """Mix `share` percent of a colour (#rrggbb) with another one."""
    pairs, part = zip(bytes.fromhex(color[1:]), bytes.fromhex(base[1:]), strict=True), share / 100
    return "#" + "".join(f"{round(own * part + other * (1 - part)):02x}" for own, other in pairs)


def paint(part: str, theme: tuple[str, str], color: str = "", share: float = 0) -> str:
    """CSS of `share` percent of a colour in a theme's, for `part` ("color", "background", "border-color").

    It stands there twice: first for viewers without the theme, and for JupyterLab's sanitizer, which removes
    what is mixed from the notebooks of others.
    """
    variable, plain = theme
    themed = f"var({variable},{plain})"
    if color:
        themed, plain = f"color-mix(in srgb,{color} {share:.0f}%,{themed})", mixed(color, share, plain)
    return f"{part}:{plain};{part}:{themed}"


def word(color: str) -> str:
    """CSS of a word in a colour of KINDS."""
    return paint("color", INK, color, WORD_SHARE)


def ground(color: str, share: float = GROUND_SHARE) -> str:
    """CSS of a ground in a colour."""
    return paint("background", PAPER, color, share)


def edge(color: str) -> str:
    """CSS of a thick left edge in a colour of KINDS."""
    return f"border-left:4px solid;{paint('border-color', INK, color, WORD_SHARE)}"


def rule(border: str) -> str:
    """CSS of a thin line as a border ("border", "border-top")."""
    return f"{border}:1px solid;{paint('border-color', RULE)}"


SHEET = f"{paint('background', PAPER)};{paint('color', INK)}"
FAINT = "color:#606060;" + "color:color-mix(in srgb,var({},{}) {}%,var({},{}))".format(
    *INK, FAINT_SHARE, *PAPER
)
TOKEN_EDGE = "outline:1px dotted rgba(128,128,128,0.4)"
CARD = (
    f"box-sizing:border-box;padding:8px 10px;{rule('border')};border-radius:6px;{SHEET};line-height:1.4;"
    "font-size:13px;text-align:left;overflow-wrap:anywhere"
)
GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(255px,100%),1fr));gap:8px"
LIGHT_PICTURE = "jp-needs-light-background"
"""JupyterLab's class of a picture that was drawn for a light page."""
DARK_PICTURES = (
    f'<style>body[data-jp-theme-light="false"] img.{LIGHT_PICTURE}'
    "{filter:invert(87%) hue-rotate(180deg)}</style>"
)
"""A sheet for pages with such pictures: in JupyterLab's dark theme their white becomes the theme's paper, and
their black a light ink, while hues stay. Viewers without such a theme, or sheets, show them as drawn."""

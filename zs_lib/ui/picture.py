"""Draw trajectories side by side as an SVG: for pages that show pictures alone, such as a README's."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from zs_lib.analysis.trajectory_index import load_sample
from zs_lib.qa import scoring
from zs_lib.runs.files import write_text
from zs_lib.ui import render, theme
from zs_lib.ui.terminal import visible

WIDTH, PAD, LINE, GAP = 430, 12, 17, 6
"""Pixels: of a column, inside a box, of a line of text, between boxes."""
LETTERS = 54
"""Letters of a line: 13 px monospace letters are 7.8 px wide at most."""
LIGHT, DARK = ("#222222", "#ffffff"), ("#e6e6e6", "#0d1117")
"""Ink and paper of the page around it, as the reader's system asks for."""
_BLOCK = re.compile(r"<(think|search|answer)>\s*(.*?)\s*</\1>", re.DOTALL)


def draw_sample(profile: str, folder: Path) -> list[Path]:
    """Draw the last question that a recorded run was watched at, after its first and its last step.

    Returns the file, `trajectory.svg` in `folder`; none if the profile has no record of trajectories.
    """
    watched = [record for record in load_sample(profile) if record.get("watched")]
    if not watched:
        return []
    told = [record for record in watched if record["question"] == watched[-1]["question"]]
    ends = [told[0], told[-1]]
    titles = [f"After RL step {record['step']}" for record in ends]
    write_text(folder / "trajectory.svg", draw(ends, titles))
    return [folder / "trajectory.svg"]


def draw(records: Sequence[dict], titles: Sequence[str]) -> str:
    """Draw records of `rl.trajectory.to_record` side by side under their titles; SVG, read by itself."""
    columns = [_column(*each) for each in zip(records, titles, strict=True)]
    height = max(bottom for _, bottom in columns) + PAD
    width = len(columns) * (WIDTH + PAD) + PAD
    body = "".join(
        f'<g transform="translate({PAD + n * (WIDTH + PAD)} 0)">{drawn}</g>'
        for n, (drawn, _) in enumerate(columns)
    )
    question = html.escape(records[0]["question"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" '
        f'font-size="13" role="img"><title>{question}</title>'
        f"<style>{_colors(*LIGHT)}@media (prefers-color-scheme: dark){{{_colors(*DARK)}}}</style>"
        f'<rect class="paper" width="100%" height="100%"/>{body}</svg>\n'
    )


def _colors(ink: str, paper: str) -> str:
    """CSS of the kinds' grounds, edges and words on this paper, in the shares of `theme`."""
    rules = [f"text{{fill:{ink}}}.paper{{fill:{paper}}}"]
    for kind, (_, color) in theme.KINDS.items():
        word = theme.mixed(color, theme.WORD_SHARE, ink)
        ground = theme.mixed(color, theme.GROUND_SHARE, paper)
        rules.append(
            f".{kind} .edge{{fill:{color}}}.{kind} .ground{{fill:{ground}}}.{kind} tspan{{fill:{word}}}"
        )
    return "".join(rules)


def _column(record: dict, title: str) -> tuple[str, int]:
    """One trajectory's boxes, and the height at which they end."""
    y, drawn = PAD, []
    ends = f"reward {record['reward']:.2f}: {render.why(record)}"
    for kind, text in (("", f"{title}: {record['question']}"), *_parts(record), ("", ends)):
        word = f"{theme.KINDS[kind][0]} " if kind else ""
        lines = textwrap.wrap(word + visible(text), LETTERS)
        box = LINE * len(lines) + GAP
        if kind:
            drawn.append(f'<rect class="ground" y="{y}" width="{WIDTH}" height="{box}"/>')
            drawn.append(f'<rect class="edge" y="{y}" width="4" height="{box}"/>')
        for n, line in enumerate(lines):
            rest = html.escape(line[len(word) :] if n == 0 else line)
            shown = f'<tspan font-weight="bold">{word}</tspan>{rest}' if kind and n == 0 else rest
            bold = "" if kind else ' font-weight="bold"'
            drawn.append(
                f'<text x="{PAD}" y="{y + LINE * (n + 1) - 2}" xml:space="preserve"{bold}>{shown}</text>'
            )
        drawn[-len(lines) - 2 * bool(kind) :] = [
            f'<g class="{kind}">{"".join(drawn[-len(lines) - 2 * bool(kind) :])}</g>'
        ]
        y += box + GAP
    return "".join(drawn), y


def _parts(record: dict) -> Iterable[tuple[str, str]]:
    """Kind and text of each part of a trajectory: thoughts, searches, documents, the answer."""
    for turn in record["turns"]:
        yield from _BLOCK.findall(turn["text"]) or [("invalid", turn["text"])]
        for document in turn["documents"]:
            states = scoring.contains(document, record["golden_answers"])
            yield "documents", ("✔ " if states else "") + document

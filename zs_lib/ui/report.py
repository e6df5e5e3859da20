"""A study as a website of plain files: its notebooks, with a first page of claims and tables.

Each page stands alone: pictures lie inside it, there is no script, and its content security policy forbids the browser to
load anything from anywhere. So it can be put on any server, or sent as a folder.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from zs_lib import config
from zs_lib.analysis import drawing, paper, results, tables
from zs_lib.errors import DataError
from zs_lib.launch.notebooks import OUTPUTS, choose

INTERPRETED = ("application/javascript", "application/vnd.jupyter.widget-view+json")
"""Outputs that need a program to show them; what else the same output holds is shown instead."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { margin: 0 auto; max-width: 1080px; padding: 0 16px 48px; font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; }
nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ccc; padding: 8px 0; display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 14px; z-index: 1; }
nav b { white-space: nowrap; }
a { color: #0b5394; }
h1 { font-size: 1.6em; line-height: 1.25; } h2 { font-size: 1.25em; margin-top: 1.8em; }
img { max-width: 100%; height: auto; }
pre { overflow-x: auto; margin: 0; font-size: 13px; line-height: 1.45; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 4px 10px; border-bottom: 1px solid #ddd; vertical-align: top; }
.scroll, .output_subarea, .rendered_html { overflow-x: auto; }
.prompt { display: none; }
.input_area { background: #f5f5f5; border-left: 3px solid #bbb; padding: 8px 12px; margin: 10px 0; overflow-x: auto; }
.output_area { margin: 8px 0; }
.note { color: #595959; font-size: 14px; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { font-size: 15px; padding: 0 10px 32px; } table { font-size: 13px; } nav { position: static; } }
"""
STORED = "Not run with this profile, but shown as stored with the code:"
_LINK = re.compile(r'href="(?:\./)?([\w-]+)\.ipynb(#[^"]*)?"')
_ELSEWHERE = re.compile(r'<a href="\.\./[^"]*">(.*?)</a>', re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A notebook of the report."""

    name: str
    """Of the notebook's file, without its ending; the page is name.html."""
    title: str
    question: str
    """What the notebook asks, as its first cell says."""
    body: str
    """HTML."""
    executed: bool
    """Whether it is the profile's own run; else the notebook as it is stored."""


def write_report(profile: str, out: Path | str) -> list[Path]:
    """Write the website of a profile into the folder `out`; the first page first.

    Of each notebook the one executed with this profile (outputs/PROFILE), else the stored one. Claims and tables are those
    recorded for the profile; where none are, the first page says so.

    Raises:
        ConfigError: there is no such profile. DataError: a notebook is missing or damaged.
    """
    config.load_profile(profile)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    pages = [_page(source, profile) for source in choose()]
    written = [folder / "index.html", *(folder / f"{page.name}.html" for page in pages)]
    written[0].write_text(
        _whole("ZeroSearch workbench", _first_page(profile, pages), pages), encoding="utf-8"
    )
    for place, (page, path) in enumerate(zip(pages, written[1:], strict=True)):
        path.write_text(_whole(page.title, page.body, pages, place), encoding="utf-8")
    return written


def _page(source: Path, profile: str) -> Page:
    executed = OUTPUTS / profile / source.name
    path = executed if executed.exists() else source
    try:
        notebook = nbformat.read(path, 4)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The notebook {path} cannot be read ({error}): restore it, or run it again."
        ) from error
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        for kind in INTERPRETED:
            output.get("data", {}).pop(kind, None)
    notebook.metadata.pop("widgets", None)
    exporter = HTMLExporter(
        template_name="basic",
        embed_images=True,
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, resources = exporter.from_notebook_node(notebook, {"metadata": {"path": str(source.parent)}})
    body = _ELSEWHERE.sub(r"\1", _LINK.sub(r'href="\1.html\2"', body))
    head = notebook.cells[0].source if notebook.cells else ""
    title = next((line.lstrip("# ") for line in head.splitlines() if line.startswith("#")), source.stem)
    question = re.search(r"\*\*Question\.\*\*\s*(.+)", head)
    colors = "".join(resources["inlining"]["css"])
    return Page(
        source.stem,
        title,
        question[1].replace("*", "") if question else "",
        f"<style>{colors}</style>{body}",
        path == executed,
    )


def _first_page(profile: str, pages: Sequence[Page]) -> str:
    rows = "".join(
        f'<li><a href="{page.name}.html">{html.escape(page.title)}</a><br>{html.escape(page.question)}</li>'
        for page in pages
    )
    stored = ", ".join(page.name[:2] for page in pages if not page.executed)
    note = f'<p class="note">{STORED} {stored}</p>' if stored else ""
    ours = "".join(_recorded(profile))
    theirs = "".join(
        _folded(
            f"{title}: {name.replace('_', ' ')}",
            paper.load_table(name) if name == "cost" else paper.with_intervals(name),
        )
        for name, title in paper.TABLES.items()
    )
    return (
        f"<h1>ZeroSearch workbench: the study <code>{html.escape(profile)}</code></h1><p>A language model learns to use a search "
        "engine while another one plays the engine (ZeroSearch, arXiv 2505.04588). Notebooks that reproduce the study, the paper's "
        f"claims as tested here, and the tables.</p>{ours}<h2>Notebooks</h2>{note}<ul>{rows}</ul><h2>The paper's own tables</h2>"
        f'<p class="note">In percent, with the 95% sampling error that the paper leaves out.</p>{theirs}'
    )


def _recorded(profile: str) -> Iterator[str]:
    """Claims, the core's scores, and the tables, as far as they are recorded."""
    try:
        recorded = results.load_tables(profile)
    except DataError as error:
        yield f'<h2>Results</h2><p class="note">{html.escape(str(error))}</p>'
        return
    yield f"<h2>The paper's claims, tested here</h2>{_table(tables.OURS['claims'](recorded))}"
    yield f"<h2>Held-out scores</h2>{_table(tables.OURS['core'](recorded).rename(index=drawing.LABELS))}<h2>Tables</h2>"
    for name in (name for name in tables.OURS if name.startswith("table")):
        title = re.sub(r"table(\d+)_", r"Table \1: ", name)
        try:
            yield _folded(title, tables.OURS[name](recorded))
        except DataError as error:
            yield f'<p class="note">{title} is not recorded yet: {html.escape(str(error))}</p>'


def _table(table: pd.DataFrame) -> str:
    return f'<div class="scroll">{table.reset_index().to_html(index=False, border=0, na_rep="", float_format="%.4g", escape=True)}</div>'


def _folded(title: str, table: pd.DataFrame) -> str:
    shown = table if table.index.name or table.index.nlevels > 1 else table.set_index(table.columns[0])
    return f"<details><summary>{html.escape(title)}</summary>{_table(shown)}</details>"


def _whole(title: str, body: str, pages: Sequence[Page], place: int | None = None) -> str:
    """A page with its navigation; `place` is the page's among the notebooks, None for the first page."""
    links = ['<b><a href="index.html">ZeroSearch</a></b>']
    links += [
        f"<b>{page.name[:2]}</b>"
        if number == place
        else f'<a href="{page.name}.html" title="{html.escape(page.title)}">{page.name[:2]}</a>'
        for number, page in enumerate(pages)
    ]
    note = (
        ""
        if place is None or pages[place].executed
        else f'<p class="note">{STORED} {pages[place].name[:2]}</p>'
    )
    after = [] if place is None else pages[place + 1 : place + 2]
    following = "".join(
        f'<p>Next: <a href="{page.name}.html">{html.escape(page.title)}</a></p>' for page in after
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        f"</head><body><nav>{' '.join(links)}</nav>{note}{body}{following}</body></html>"
    )

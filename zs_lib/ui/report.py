"""Write a study as a website of plain files: its notebooks, and a first page of claims and tables.

Each page is self-contained: pictures are embedded, there is no script, and its content security policy
forbids the browser to load anything. So it can be put on any server, or sent as a folder.
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
from zs_lib.launch import notebooks

INTERPRETED = ("application/javascript", "application/vnd.jupyter.widget-view+json")
"""Formats of outputs that need a program; another format of the same output is shown instead."""
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body {
  margin: 0 auto; max-width: 1080px; padding: 0 16px 48px;
  font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff;
}
nav {
  position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 4px 14px; padding: 8px 0;
  background: #fff; border-bottom: 1px solid #ccc; font-size: 14px;
}
nav b { white-space: nowrap; }
a { color: #0b5394; }
h1 { font-size: 1.6em; line-height: 1.25; }
h2 { font-size: 1.25em; margin-top: 1.8em; }
img { max-width: 100%; height: auto; }
pre { overflow-x: auto; margin: 0; font-size: 13px; line-height: 1.45; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 4px 10px; border-bottom: 1px solid #ddd; vertical-align: top; }
.scroll, .output_subarea, .rendered_html { overflow-x: auto; }
.prompt { display: none; }
.input_area {
  background: #f5f5f5; border-left: 3px solid #bbb; padding: 8px 12px; margin: 10px 0; overflow-x: auto;
}
.output_area { margin: 8px 0; }
.note { color: #595959; font-size: 14px; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  body { font-size: 15px; padding: 0 10px 32px; }
  table { font-size: 13px; }
  nav { position: static; }
}
"""
STORED = "Not run with this profile; shown as stored in the repository:"
_LINK = re.compile(r'href="(?:\./)?([\w-]+)\.ipynb(#[^"]*)?"')
_OUTSIDE_LINK = re.compile(r'<a href="\.\./[^"]*">(.*?)</a>', re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A notebook of the report."""

    name: str
    """Name of the notebook's file, without its ending; the page is name.html."""
    title: str
    question: str
    """The question that the notebook answers, from its first cell."""
    body: str
    """HTML."""
    executed: bool
    """Whether the notebook was executed with this profile; else it is shown as stored in the repository."""


def write_report(profile: str, out: Path | str) -> list[Path]:
    """Write the website of a profile into the folder `out`; its files, the first page first.

    A notebook that was executed with this profile is read from outputs/PROFILE, others as stored in the
    repository. Claims and tables are the profile's recorded ones; if none are recorded, the first page says
    so.

    Raises:
        ConfigError: there is no such profile. DataError: a notebook is missing or damaged.
    """
    config.load_profile(profile)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    pages = [_page(source, profile) for source in notebooks.choose()]
    index = folder / "index.html"
    index.write_text(_html("ZeroSearch workbench", _first_page(profile, pages), pages), encoding="utf-8")
    written = [index]
    for number, page in enumerate(pages):
        path = folder / f"{page.name}.html"
        path.write_text(_html(page.title, page.body, pages, number), encoding="utf-8")
        written.append(path)
    return written


def _page(source: Path, profile: str) -> Page:
    executed = notebooks.OUTPUTS / profile / source.name
    path = executed if executed.exists() else source
    notebook = _read_notebook(path)
    exporter = HTMLExporter(
        template_name="basic",
        embed_images=True,
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, resources = exporter.from_notebook_node(notebook, {"metadata": {"path": str(source.parent)}})
    body = _OUTSIDE_LINK.sub(r"\1", _LINK.sub(r'href="\1.html\2"', body))
    head = notebook.cells[0].source if notebook.cells else ""
    title = next((line.lstrip("# ") for line in head.splitlines() if line.startswith("#")), source.stem)
    question = re.search(r"\*\*Question\.\*\*\s*(.+)", head)
    colors = "".join(resources["inlining"]["css"])
    return Page(
        name=source.stem,
        title=title,
        question=question[1].replace("*", "") if question else "",
        body=f"<style>{colors}</style>{body}",
        executed=path == executed,
    )


def _read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook, without the outputs that need a program to show them."""
    try:
        notebook = nbformat.read(path, 4)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The notebook {path} cannot be read ({error}): restore it, or run it again."
        ) from error
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in INTERPRETED:
                output.get("data", {}).pop(kind, None)
    notebook.metadata.pop("widgets", None)
    return notebook


def _first_page(profile: str, pages: Sequence[Page]) -> str:
    stored = ", ".join(page.name[:2] for page in pages if not page.executed)
    parts = [
        f"<h1>ZeroSearch workbench: the study <code>{html.escape(profile)}</code></h1>",
        "<p>A language model learns to use a search engine while another model simulates the engine "
        "(ZeroSearch, arXiv 2505.04588). Here are the notebooks that reproduce the study, tests of the "
        "paper's claims, and the tables.</p>",
        *_recorded(profile),
        "<h2>Notebooks</h2>",
        f'<p class="note">{STORED} {stored}</p>' if stored else "",
        "<ul>",
        *map(_list_item, pages),
        "</ul><h2>The paper's own tables</h2>",
        '<p class="note">In percent, with the 95% sampling error, which the paper does not report.</p>',
    ]
    for name, title in paper.TABLES.items():
        table = paper.load_table(name) if name == "cost" else paper.with_intervals(name)
        parts.append(_folded(f"{title}: {name.replace('_', ' ')}", table))
    return "".join(parts)


def _list_item(page: Page) -> str:
    title, question = html.escape(page.title), html.escape(page.question)
    return f'<li><a href="{page.name}.html">{title}</a><br>{question}</li>'


def _recorded(profile: str) -> Iterator[str]:
    """HTML of the claims, the core's scores and the tables, as far as they are recorded."""
    try:
        recorded = results.load_tables(profile)
    except DataError as error:
        yield f'<h2>Results</h2><p class="note">{html.escape(str(error))}</p>'
        return
    yield "<h2>The paper's claims, tested here</h2>"
    yield _table(tables.OURS["claims"](recorded))
    yield _folded("The ledger: the paper's numbers, others' and ours", tables.OURS["ledger"](recorded))
    yield "<h2>Held-out scores</h2>"
    yield _table(tables.OURS["core"](recorded).rename(index=drawing.LABELS))
    yield "<h2>Tables</h2>"
    for name in (name for name in tables.OURS if name.startswith("table")):
        title = re.sub(r"table(\d+)_", r"Table \1: ", name)
        try:
            yield _folded(title, tables.OURS[name](recorded))
        except DataError as error:
            yield f'<p class="note">{title} is not recorded yet: {html.escape(str(error))}</p>'


def _table(table: pd.DataFrame) -> str:
    cells = table.reset_index()
    rendered = cells.to_html(index=False, border=0, na_rep="", float_format="%.4g", escape=True)
    return f'<div class="scroll">{rendered}</div>'


def _folded(title: str, table: pd.DataFrame) -> str:
    shown = table if table.index.name or table.index.nlevels > 1 else table.set_index(table.columns[0])
    return f"<details><summary>{html.escape(title)}</summary>{_table(shown)}</details>"


def _html(title: str, body: str, pages: Sequence[Page], number: int | None = None) -> str:
    """A whole page with its navigation; `number` is its index in `pages`, None for the first page."""
    links = ['<b><a href="index.html">ZeroSearch</a></b>']
    for other, page in enumerate(pages):
        label = page.name[:2]
        if other == number:
            links.append(f"<b>{label}</b>")
        else:
            links.append(f'<a href="{page.name}.html" title="{html.escape(page.title)}">{label}</a>')
    note = following = ""
    if number is not None:
        if not pages[number].executed:
            note = f'<p class="note">{STORED} {pages[number].name[:2]}</p>'
        for page in pages[number + 1 : number + 2]:
            following = f'<p>Next: <a href="{page.name}.html">{html.escape(page.title)}</a></p>'
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><nav>{' '.join(links)}</nav>{note}{body}{following}</body></html>"
    )

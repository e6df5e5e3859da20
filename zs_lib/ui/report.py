"""Write a study as a website of plain files: claims and tables, trajectories to search, its notebooks.

Each page is self-contained: pictures are embedded, and its content security policy forbids the browser to
load anything, and to run any script but the search among the trajectories. So it can be put on any server, or
sent as a folder.
"""

from __future__ import annotations

import html
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor

from zs_lib import config
from zs_lib.analysis import drawing, figures, paper, results, tables, trajectory_index
from zs_lib.config import Profile
from zs_lib.errors import DataError
from zs_lib.launch import notebooks
from zs_lib.runs import RunStore
from zs_lib.ui import formulas, render

INTERPRETED = ("application/javascript", "application/vnd.jupyter.widget-view+json")
"""Formats of outputs that need a program; another format of the same output is shown instead."""
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
FIND = """
const box = document.getElementById("find"), count = document.getElementById("count");
const all = [...document.querySelectorAll("details.trajectory")];
const texts = all.map(one => one.textContent.toLowerCase());
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/);
  all.forEach((one, n) => { one.hidden = !words.every(word => texts[n].includes(word)); });
  count.textContent = `${all.filter(one => !one.hidden).length} of ${all.length}`;
});
document.getElementById("search").hidden = false;
"""
"""The one script: shows the trajectories that hold every word of the box."""
STYLE = """
:root {
  color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #595959; --rule: #d5d5d5; --link: #0b5394;
  --code: #f5f5f5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #dfe3e8; --paper: #12161c; --faint: #9aa4af; --rule: #333b45; --link: #7cb7f2; --code: #1b2129;
  }
}
:root {
  --jp-content-font-color1: var(--ink); --jp-layout-color1: var(--paper); --jp-border-color1: var(--rule);
}
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
main { max-width: 1000px; min-width: 0; padding: 8px 24px 48px; }
nav { font-size: 14px; line-height: 1.35; padding: 10px 16px; }
nav a, nav b.here { display: block; padding: 4px 0; text-decoration: none; }
#menu { position: absolute; opacity: 0; }
label[for=menu] { display: block; padding: 10px 16px; border-bottom: 1px solid var(--rule); cursor: pointer; }
#menu:focus-visible + label { outline: 2px solid var(--link); }
#menu:not(:checked) ~ nav { display: none; }
@media (min-width: 900px) {
  body { display: grid; grid-template-columns: 250px minmax(0, 1fr); }
  label[for=menu] { display: none; }
  #menu ~ nav, #menu:not(:checked) ~ nav {
    display: block; position: sticky; top: 0; height: 100vh; overflow-y: auto;
    border-right: 1px solid var(--rule);
  }
  #menu { display: none; }
}
a { color: var(--link); }
h1 { font-size: 1.6em; line-height: 1.25; }
h2 { font-size: 1.25em; margin-top: 1.8em; }
img { max-width: 100%; height: auto; }
img[src^="data:image/png"] { background: #fff; border-radius: 4px; }
pre { overflow-x: auto; margin: 0; font-size: 13px; line-height: 1.45; }
table { border-collapse: collapse; font-size: 14px; border: 0; }
th, td {
  text-align: left; padding: 4px 10px; border: 0; border-bottom: 1px solid var(--rule); vertical-align: top;
}
.scroll, .output_subarea, .rendered_html { overflow-x: auto; }
.prompt { display: none; }
.input_area {
  background: var(--code); border-left: 3px solid var(--rule); padding: 8px 12px; margin: 10px 0;
  overflow-x: auto;
}
.output_area { margin: 8px 0; }
.input_area .highlight { background: none !important; }
.formula { display: block; overflow-x: auto; margin: 4px 0 4px 24px; }
.note { color: var(--faint); font-size: 14px; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 6px 0; }
details { border-bottom: 1px solid var(--rule); }
details dl { margin: 0 0 10px 18px; font-size: 14px; }
dt { color: var(--faint); }
dd { margin: 0 0 6px 0; overflow-wrap: anywhere; }
.verdict { display: inline-block; min-width: 8.5em; font-size: 14px; font-weight: bold; }
.verdict.holds { color: light-dark(#00694d, #4fc3a1); }
.verdict.does-not-hold { color: light-dark(#983b00, #f0955a); }
input[type=search] { font: inherit; width: min(100%, 420px); padding: 6px 10px; }
@media (max-width: 600px) {
  body { font-size: 15px; }
  main { padding: 4px 12px 32px; }
  table { font-size: 13px; }
  td { min-width: 6.5em; }
  .verdict { min-width: 0; margin-right: 0.5em; }
}
"""
DARK_CODE = "github-dark"
"""Pygments' style of code in the dark; nbconvert's own is for light paper."""
STORED = "Not run with this profile; shown as stored in the repository:"
TOUR = "README.md"
"""Among the notebooks: the page of what they need, and of what to change where."""
_SOLUTION = re.compile(r'(<div class="cell [^"]*celltag_solution".*?)(?=<div class="cell |\Z)', re.DOTALL)
_LINK = re.compile(r'href="(?:\./)?([\w-]+)\.ipynb(#[^"]*)?"')
_OUTSIDE_LINK = re.compile(r'<a href="\.\./[^"]*">(.*?)</a>', re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A page of the report: a notebook, or one of ours."""

    name: str
    """Name of the file without its ending: a notebook's own."""
    title: str
    question: str
    """The question that the page answers."""
    body: str
    """HTML."""
    executed: bool = True
    """Whether the notebook was executed with this profile; else it is shown as stored in the repository."""


def write_report(profile: str, out: Path | str, made: results.Tables | None = None) -> list[Path]:
    """Write the website of a profile into the folder `out`; its files, the first page first.

    A notebook that was executed with this profile is read from outputs/PROFILE, others as stored in the
    repository. Claims and tables are of the tables `made`, else of the profile's recorded ones; if none are
    recorded, the first page says so.

    Raises:
        ConfigError: there is no such profile. DataError: a notebook is missing or damaged.
    """
    config.load_profile(profile)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    shown = _trajectories(config.load_profile(profile))
    pages = [_trajectory_page(shown)] if shown else []
    sources = (notebooks.NOTEBOOKS / TOUR, *notebooks.choose())
    pages += [_page(source, profile) for source in sources]
    first = Page(
        "index", f"ZeroSearch workbench: the study {profile}", "", _first_page(profile, pages, shown, made)
    )
    written = []
    for page in (first, *pages):
        path = folder / f"{page.name}.html"
        path.write_text(_html(page, pages), encoding="utf-8")
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
    drawn: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas.set_aside(cell.source, drawn)
    body, resources = exporter.from_notebook_node(notebook, {"metadata": {"path": str(source.parent)}})
    body = _OUTSIDE_LINK.sub(r"\1", _LINK.sub(r'href="\1.html\2"', body))
    body = formulas.put_back(body, drawn)
    body = _SOLUTION.sub(r"<details><summary>Solution</summary>\1</details>", body)
    body = re.sub(rf'href="{TOUR}[^"]*"', 'href="tour.html"', body)
    head = notebook.cells[0].source if notebook.cells else ""
    title = next((line.lstrip("# ") for line in head.splitlines() if line.startswith("#")), source.stem)
    question = re.search(r"\*\*Question\.\*\*\s*(.+)", head)
    dark = CSSHTMLHeaderPreprocessor(style=DARK_CODE).preprocess(notebook, resources | {"inlining": {}})[1]
    light, dark = ("".join(found["inlining"]["css"]) for found in (resources, dark))
    return Page(
        name="tour" if source.name == TOUR else source.stem,
        title=title,
        question=question[1].replace("*", "") if question else "",
        body=f"<style>{light}@media (prefers-color-scheme: dark) {{{dark}}}</style>{body}",
        executed=path == executed or source.name == TOUR,
    )


def _read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook, or the tour as one, without the outputs that need a program to show them."""
    try:
        if path.name == TOUR:
            return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(path.read_text("utf-8"))])
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


def _trajectories(study: Profile) -> list[dict]:
    """The profile's recorded trajectories; if there are none, those of its main policy in the run store."""
    if recorded := trajectory_index.load_sample(study.name):
        return recorded
    run = RunStore().get(study.policies[0], 0)
    return trajectory_index.sample(run) if run and run.finished else []


def _trajectory_page(records: Sequence[dict]) -> Page:
    """The page of trajectories: a line for each, which opens, and a box to search among them."""
    parts = [
        f"<h1>Trajectories</h1><p>{len(records)} of the run <code>{html.escape(records[0]['run'])}</code>: "
        "two questions asked greedily throughout its training, and whole groups of three steps. "
        "✔ marks documents that state the answer.</p>",
        '<p id="search" hidden><label>Find <input id="find" type="search" placeholder="reward 0.00 noisy"> '
        '</label><span id="count" class="note"></span></p>',
    ]
    for record in records:
        searches = sum(turn["query"] is not None for turn in record["turns"])
        noisy = " · noisy" if any(turn["noisy"] for turn in record["turns"]) else ""
        told = f"step {record['step']} · reward {record['reward'] or 0:.2f} · {searches} searches{noisy}"
        card = render.trajectory(record, simulated=True)
        parts.append(
            f'<details class="trajectory"><summary><span class="note">{told}</span> '
            f"{render.text(record['question'])}</summary>{card}</details>"
        )
    parts.append(f"<script>{FIND}</script>")
    return Page("trajectories", "Trajectories", "How does the policy search, step by step?", "".join(parts))


def _first_page(
    profile: str, pages: Sequence[Page], shown: Sequence[dict], made: results.Tables | None
) -> str:
    stored = ", ".join(page.name[:2] for page in pages if not page.executed)
    parts = [
        f"<h1>ZeroSearch workbench: the study <code>{html.escape(profile)}</code></h1>",
        "<p>A language model learns to use a search engine while another model simulates the engine "
        "(ZeroSearch, arXiv 2505.04588).</p>",
        _embedded((figures.FOLDER / "method.svg").read_bytes(), "svg+xml", "The method"),
        *_results(profile, made),
        *_before_and_after(shown),
        "<h2>Pages</h2>",
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


def _before_and_after(records: Sequence[dict]) -> Iterator[str]:
    """The last watched question, as it is answered after the first and the last step."""
    watched = [record for record in records if record.get("watched")]
    if watched:
        told = [record for record in watched if record["question"] == watched[-1]["question"]]
        yield "<h2>One question, after the first step and after the last</h2>"
        titles = [f"after step {record['step']}" for record in (told[0], told[-1])]
        yield render.group([told[0], told[-1]], simulated=True, titles=titles)
        yield '<p><a href="trajectories.html">More trajectories, to search and open</a></p>'


def _list_item(page: Page) -> str:
    title, question = html.escape(page.title), html.escape(page.question)
    return f'<li><a href="{page.name}.html">{title}</a><br>{question}</li>'


def _results(profile: str, made: results.Tables | None) -> Iterator[str]:
    """HTML of the picture, the claims, the scores and the tables, as far as they are recorded, or `made`."""
    scores, picture = ("own_heldout", "own_heldout") if made else ("core", "04_heldout")
    try:
        shown = made or results.load_tables(profile)
    except DataError as error:
        yield f'<h2>Results</h2><p class="note">{html.escape(str(error))}</p>'
        return
    found, lacking = tables.make_all(shown, [*tables.OURS, scores])
    if scores in found:
        yield _figure(picture, shown, profile + ", run store" * bool(made))
    yield "<h2>The paper's claims, tested here</h2>"
    yield from map(_claim, found["ledger"].reset_index().to_dict("records"))
    if scores in found:
        yield "<h2>Held-out scores</h2>"
        yield _table(found[scores].rename(index=drawing.LABELS))
    yield "<h2>Tables</h2>"
    for name in (name for name in tables.OURS if name.startswith("table")):
        title = re.sub(r"table(\d+)_", r"Table \1: ", name)
        if name in found:
            yield _folded(title, found[name])
        else:
            yield f'<p class="note">{title} is not there yet: {html.escape(lacking[name])}</p>'


def _figure(name: str, recorded: results.Tables, profile: str) -> str:
    """Draw a figure of these tables, embedded."""
    figure = figures.draw(name, recorded, figures.provenance_of(recorded, profile))
    return _embedded(drawing.picture(figure), "png", "Held-out F1 of every arm")


def _embedded(picture: bytes, kind: str, told: str) -> str:
    source = f"data:image/{kind};base64,{b64encode(picture).decode()}"
    return f'<p><img alt="{told}" src="{source}"></p>'


def _claim(row: dict) -> str:
    """A line of the ledger: the verdict and the claim; opened, the numbers behind them."""
    told = {name: row[name] for name in ("ours", "paper", "others", "predicted") if row[name]}
    rest = "".join(f"<dt>{name}</dt><dd>{html.escape(str(text))}</dd>" for name, text in told.items())
    verdict, said = (html.escape(row[name]) for name in ("verdict", "claim of the paper"))
    return (
        f'<details><summary><span class="verdict {verdict.replace(" ", "-")}">{verdict}</span> '
        f"{row['claim']}. {said}</summary><dl>{rest}</dl></details>"
    )


def _table(table: pd.DataFrame) -> str:
    cells = table.reset_index()
    rendered = cells.to_html(index=False, border=0, na_rep="", float_format="%.4g", escape=True)
    return f'<div class="scroll">{rendered}</div>'


def _folded(title: str, table: pd.DataFrame) -> str:
    shown = table if table.index.name or table.index.nlevels > 1 else table.set_index(table.columns[0])
    return f"<details><summary>{html.escape(title)}</summary>{_table(shown)}</details>"


def _html(page: Page, pages: Sequence[Page]) -> str:
    """A whole page, with the titles of all others in its navigation."""
    links = []
    for other in (Page("index", "Results", "", ""), *pages):
        title = html.escape(other.title)
        here = other.name == page.name
        links.append(f'<b class="here">{title}</b>' if here else f'<a href="{other.name}.html">{title}</a>')
    at = pages.index(page) if page in pages else -1
    note = "" if page.executed else f'<p class="note">{STORED} {page.name[:2]}</p>'
    after = (
        f'<p>Next: <a href="{p.name}.html">{html.escape(p.title)}</a></p>' for p in pages[at + 1 : at + 2]
    )
    policy = CONTENT_POLICY
    if page.name == "trajectories":
        policy += f"; script-src 'sha256-{b64encode(sha256(FIND.encode()).digest()).decode()}'"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(page.title)}</title><style>{STYLE}</style></head>"
        '<body><input type="checkbox" id="menu"><label for="menu">☰ ZeroSearch workbench</label>'
        f"<nav>{''.join(links)}</nav><main>{note}{page.body}{''.join(after)}</main></body></html>"
    )

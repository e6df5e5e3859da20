"""The website: every notebook has a page, links lead somewhere, and nothing is loaded from anywhere."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import nbformat
import pytest

from zs_lib import cli
from zs_lib.analysis import trajectory_index
from zs_lib.errors import ConfigError, DataError
from zs_lib.launch import notebooks
from zs_lib.launch.notebooks import NOTEBOOKS, choose
from zs_lib.ui import formulas, report

LOADS = {
    ("img", "src"),
    ("img", "srcset"),
    ("link", "href"),
    ("script", "src"),
    ("iframe", "src"),
    ("object", "data"),
    ("embed", "src"),
    ("source", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("image", "href"),
    ("use", "href"),
    ("input", "src"),
    ("form", "action"),
}


class Found(HTMLParser):
    """What a page loads, links to, and may be linked at."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.loads, self.links, self.places = set(), [], [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if (tag, name) in LOADS:
                self.loads.append(value)
            if (tag, name) == ("a", "href"):
                self.links.append(value)
            if name == "id":
                self.places.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:  # of the notebooks as they are, not of what ran here
        patch.setattr("zs_lib.launch.notebooks.OUTPUTS", tmp_path_factory.mktemp("outputs"))
        assert cli.main(["report", "--out", str(folder)]) == 0
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_every_notebook_has_a_page_that_is_reached(site):
    pages = {f"{path.stem}.html" for path in NOTEBOOKS.glob("*.ipynb")}
    assert set(site) == pages | {"index.html", "tour.html", "trajectories.html"}
    for page in site.values():
        assert '<meta name="viewport"' in page and '<label for="menu">' in page
    for name, page in site.items():
        assert set(site) <= {*Found(page).links, name}  # a click from every page to every other
        assert all(f">{title}</" in page for title in ("Results", "Trajectories", "08 · What it costs"))


def test_nothing_is_loaded_from_elsewhere(site):
    for name, page in site.items():
        found = Found(page)
        assert ("script" in found.tags) == (name == "trajectories.html"), name
        assert all(load.startswith("data:") for load in found.loads), name
        assert not re.search(
            r"url\(\s*['\"]?(?!data:)|@import", "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
        )
        # and if a notebook's output asks for it, the browser refuses: the policy stands before everything
        # else
        assert (
            page.index("Content-Security-Policy") < page.index("<style>")
            and f'content="{report.CONTENT_POLICY}' in page
        )


def test_the_only_script_is_the_one_that_the_policy_allows(site):
    page = site["trajectories.html"]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"{report.CONTENT_POLICY}; script-src 'sha256-{digest}'\"" in page
    assert not re.search(r"fetch|import|eval|innerHTML|https?:", script)


def test_trajectories_open_and_can_be_searched(site):
    page, records = site["trajectories.html"], trajectory_index.load_sample("tiny")
    assert page.count('<details class="trajectory">') == len(records) > 50
    assert all(f"step {record['step']} ·" in page for record in records)
    assert '<input id="find" type="search"' in page and records[0]["run"] in page
    assert "after step 1<" in site["index.html"] and "after step 64<" in site["index.html"]


def test_solutions_are_folded(site):
    folded = re.findall(
        r"<details><summary>Solution</summary>(.*?)</details>", site["03_curriculum_rl.html"], re.S
    )
    assert len(folded) >= 2 and all("highlight" in text and "assert" in text for text in folded)
    assert all(page.count("Solution</summary>") >= 2 for name, page in site.items() if name[0].isdigit())


def test_formulas_are_drawn(site):
    assert site["03_curriculum_rl.html"].count("<svg ") > 10
    for name, page in site.items():
        text = re.sub(r"<pre.*?</pre>|<code.*?</code>|<script.*?</script>|<svg.*?>", "", page, flags=re.S)
        assert "$$" not in text and "\\frac" not in text and not re.search(r"FORMULA\d", text), name


def test_a_formula_is_drawn_as_it_is_read():
    drawn: list[str] = []
    told = formulas.set_aside("`$x$`, and $x_1$:\n$$\\frac{1}{2} < \\big(1\\big)$$", drawn)
    assert told == "`$x$`, and FORMULA0X:\nFORMULA1X" and len(drawn) == 2
    assert 'aria-label="x_1"' in drawn[0] and drawn[1].startswith('<span class="formula">')
    assert formulas.put_back(told, drawn).count("<svg") == 2
    width, height = (
        float(re.search(f'{what}="(.+?)"', formulas.svg("l"))[1]) for what in ("width", "height")
    )
    assert height > 2 * width  # an l stands
    assert formulas.set_aside("$\\what{x}$", []) == "$\\what{x}$"  # mathtext does not know it


def test_the_site_is_small_enough_to_publish(site):
    assert sum(len(page.encode()) for page in site.values()) < 6_000_000


def test_links_lead_somewhere(site):
    for name, page in site.items():
        for link in Found(page).links:
            if re.match(r"https?://|mailto:", link):
                continue
            target, _, place = link.partition("#")
            assert (target or name) in site, (name, link)
            assert not place or place in Found(site[target or name]).places, (name, link)


def test_the_first_page_has_claims_scores_and_the_papers_tables(site):
    page = site["index.html"]
    assert (
        "A 3B simulator already teaches the policy to search." in page and "Search-R1 (real engine)" in page
    )
    assert "Table 8: cost" in page and "ZeroSearch" in page and page.count("<details>") >= 6 + 12
    assert page.index("data:image/png") < page.index("does not hold") < page.index("Held-out scores")


def test_executed_notebooks_go_before_stored_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "OUTPUTS", tmp_path / "outputs")
    first, source = choose(["00", "03"])
    monkeypatch.setattr(notebooks, "choose", lambda: [first, source])
    notebook = nbformat.read(source, 4)
    output = nbformat.v4.new_output(
        "display_data",
        {
            "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
            "text/html": "<b>the run of smoke</b>",
        },
    )
    next(cell for cell in notebook.cells if cell.cell_type == "code").outputs = [output]
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"x": {}}}}
    folder = tmp_path / "outputs" / "smoke"
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / source.name)
    first, *pages = report.write_report("smoke", tmp_path / "site")
    executed = next(path for path in pages if path.stem == source.stem).read_text()
    assert (
        "<b>the run of smoke</b>" in executed
        and "widget-" not in executed
        and "Not run with this profile" not in executed
    )
    assert (
        "Not run with this profile" in (tmp_path / "site" / "00_quick_start.html").read_text()
        and "No results are recorded for the profile" in first.read_text()
    )


def test_what_is_wrong_is_told(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="Unknown profile"):
        report.write_report("huge", tmp_path)
    monkeypatch.setattr(notebooks, "OUTPUTS", tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / choose(["03"])[0].name).write_text("{")
    with pytest.raises(DataError, match="03_curriculum_rl.ipynb cannot be read"):
        report.write_report("tiny", tmp_path / "site")

"""`make test-browser`: all widgets, and notebooks 00, 03 and 09 at `smoke`, in JupyterLab and Chromium, used
by mouse and by keys alone, in a window of 1280 x 720.

Screenshots come to lie in outputs/browser/, for people to look at. A test fails on an output that is an
error, on an error in the browser's console, on a control that keys do not reach or move, on a panel that is
wider than its output, and on text that is hard to read. With ZS_RUNS set, runs are kept there, and found the
next time.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from PIL import Image, ImageStat
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from zs_lib.config import paths
from zs_lib.launch.notebooks import choose

SHOTS = paths.ROOT / "outputs" / "browser"
RUN_S = 1800
"""Seconds that a notebook may take: models are loaded, small ones trained, perhaps on a busy machine."""
ANSWER_S = 300
"""Seconds that the page, or a widget's kernel, may take to answer."""
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
CONTRAST = 4.5
"""At least, as WCAG 2 asks for at level AA."""
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false"},  # it would ask whether to
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}  # cells out of sight are found too
CONTROLS = "select, input, button, [role=slider]"
SETUP = (
    "from zs_lib import config\nfrom zs_lib.ui import notebook, widgets\nstudy = config.load_profile('smoke')"
)
NOTEBOOKS = {
    "look_around": [
        SETUP,
        "arm = study.policy('zerosearch')\nruns = notebook.run([(arm, 0), (arm, 1)])\nwidgets.monitor(*runs)",
        "widgets.ask(study)",
        "widgets.explore(runs[0])",
        "widgets.playground(study)",
        "widgets.board(study)",
        "widgets.calculator()",
        "notebook.show_config(study.evaluation)\nnotebook.show('04_engines', study)",
    ],
    "interrupted": [
        SETUP,
        "long = config.load_profile('smoke', {'policy.steps': 2000})\n"
        "notebook.run([(long.policy('zerosearch'), 0)], study=long)",
    ],
}
"""Cells with what no notebook of ours holds; PANELS of the first: name → the label of one of its controls."""
PANELS = {
    "ask": "policy",
    "explorer": "find",
    "playground": "query",
    "board": "Start or resume",
    "calculator": "group size",
}
CONTRASTS = """
const numbers = color => {  // of rgb(…), or of color(srgb …), into which color-mix() is computed
    const [red, green, blue, opaque] = color.match(/[\\d.]+(e-\\d+)?/g).map(Number);
    const scale = color.startsWith('color') ? 255 : 1;
    return [scale * red, scale * green, scale * blue, opaque];
};
const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const light = color => {
    const [red, green, blue] = numbers(color).map(part => linear(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const ground = element => {
    for (; element; element = element.parentElement) {
        const color = getComputedStyle(element).backgroundColor;
        if ((numbers(color)[3] ?? 1) > 0.5) return color;
    }
    return 'rgb(255, 255, 255)';
};
const found = [], texts = document.createTreeWalker(arguments[0], NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, said = texts.currentNode.data.trim();
    if (!/[\\p{L}\\p{N}]/u.test(said) || !element.checkVisibility({visibilityProperty: true})
        || element.closest(':disabled')) continue;
    const colors = [getComputedStyle(element).color, ground(element)];
    const [low, high] = colors.map(light).sort((one, other) => one - other);
    found.push([(high + 0.05) / (low + 0.05), said, ...colors]);
}
return found;
"""
"""Every text under an element, with the contrast of its colour over the nearest ground that is not
transparent. A square in the colour of a curve is no text: the arm's name stands beside it."""


# JupyterLab and the browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with notebooks and settings, and the address at which a JupyterLab of its own shows a notebook
    of it."""
    folder = tmp_path_factory.mktemp("lab")
    for path in choose(["00", "03", "09"]):
        _write(folder / "notebooks" / path.name, nbformat.writes(_at_smoke(path)))
    for name, cells in NOTEBOOKS.items():
        made = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        _write(folder / "notebooks" / f"{name}.ipynb", nbformat.writes(made))
    for name, values in SETTINGS.items():
        _write(folder / "settings" / f"{name}.jupyterlab-settings", json.dumps(values))
    places = {f"JUPYTER_{what}_DIR": str(folder / what.lower()) for what in ("CONFIG", "DATA", "RUNTIME")}
    places |= {f"JUPYTERLAB_{what}_DIR": str(folder / what.lower()) for what in ("SETTINGS", "WORKSPACES")}
    places |= {
        "ZS_RUNS": os.environ.get("ZS_RUNS") or str(folder / "runs"),
        "ZS_OUTPUTS": str(folder / "outputs"),
    }
    path = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex(16)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--ServerApp.root_dir={folder / 'notebooks'}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
    ]
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ
            | places
            | {"JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": path},
        )
    try:
        deadline = time.monotonic() + ANSWER_S
        while not _listens(port):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "lab.log").read_text()[
                -3000:
            ]
            time.sleep(0.2)
        yield folder, f"http://127.0.0.1:{port}/lab/tree/{{}}.ipynb?reset&token={token}"
    finally:
        process.terminate()  # its kernels end with it
        process.wait(60)


@pytest.fixture
def browser():
    """Chromium without a window; what its console tells at the end may hold no error."""
    driver = shutil.which("chromedriver")
    assert driver, "chromedriver is not there: `make test-browser` installs Debian's package chromium-driver."
    options = webdriver.ChromeOptions()
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "disable-gpu",
        "window-size=1280,720",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(driver))
    driver.set_page_load_timeout(ANSWER_S)
    try:
        yield driver
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _at_smoke(path: Path) -> nbformat.NotebookNode:
    """A notebook as a person would set it: another profile in its parameters cell."""
    notebook = nbformat.read(path, 4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace('profile = "tiny"', 'profile = "smoke"')
    return notebook


def _write(path: Path, said: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(said, encoding="utf-8")


class Page:
    """A notebook open in JupyterLab, all of its cells run."""

    def __init__(self, browser, lab, name: str, theme: str = LIGHT, finish: bool = True):
        self.browser, self.name = browser, f"{name}_{theme.split()[-1].lower()}"
        folder, address = lab
        _write(
            folder / "settings" / "@jupyterlab/apputils-extension/themes.jupyterlab-settings",
            json.dumps({"theme": theme}),
        )
        browser.get(address.format(name))
        self.until(lambda: self.all(".jp-Notebook .jp-CodeCell"))
        self.until(lambda: "Idle" in self.one("#jp-main-statusbar").text)  # the kernel is there
        self._click("lm-MenuBar-item", "Run")
        self._click("lm-Menu-item", "Run All Cells")
        if not finish:
            return
        self.until(lambda: self.errors() or self.ran(), RUN_S)
        assert self.errors() == []
        self.until(lambda: self.all(".widget-vbox .widget-html-content > *"))

    def _click(self, kind: str, label: str) -> None:
        place = f"//li[contains(@class, '{kind}')][.//div[text()='{label}']]"
        self.until(lambda: self.browser.find_elements(By.XPATH, place))[0].click()

    def until(self, condition, seconds: float = ANSWER_S):
        try:
            return WebDriverWait(self.browser, seconds, 0.2).until(lambda _: condition())
        except TimeoutException:
            pytest.fail(f"Nothing came of it in {seconds} s: see {self.shot('late')}.")

    def all(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def ran(self) -> bool:
        """Whether each cell has its number, which it gets at its end; folded ones show none."""
        numbers = [prompt.text for prompt in self.all(".jp-CodeCell .jp-InputArea-prompt")]
        idle = "Idle" in self.one("#jp-main-statusbar").text
        return idle and all(any(map(str.isdigit, number)) for number in numbers)

    def errors(self) -> list[str]:
        """What failed cells show; JupyterLab shows it like other output to stderr."""
        said = [one.text for one in self.all('.jp-OutputArea-output[data-mime-type$=".stderr"]')]
        return [text for text in said if "Traceback" in text or text.startswith("Stopped")]

    def shot(self, what: str) -> Path:
        """A picture of the window."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{self.name}_{what}.png"
        self.browser.save_screenshot(str(path))
        return path

    def keys(self, *pressed: str) -> None:
        """Pressed wherever the focus is."""
        ActionChains(self.browser).send_keys(*pressed).perform()

    # widgets

    def panel(self, label: str):
        """The first of our widgets with this label or button, scrolled to the top of the window."""
        said = f"[.//label[normalize-space()='{label}'] or .//button[normalize-space()='{label}']]"
        place = f"//*[contains(@class, 'jp-OutputArea-output')]//*[contains(@class, 'widget-vbox')]{said}"
        shown = self.until(lambda: self.browser.find_elements(By.XPATH, place))[0]
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'start'})", shown)
        wide = self.browser.execute_script(
            "return arguments[0].scrollWidth - arguments[0].clientWidth", shown
        )
        assert wide <= 1, f"The panel with {label} is {wide} pixels wider than its output."
        return shown

    def write(self, field, said: str, *after: str) -> None:
        """Write into a field in place of what it holds."""
        field.click()
        self.keys(Keys.END, *[Keys.BACKSPACE] * len(field.get_attribute("value")), said, *after)

    def choose(self, control, position: int) -> str:
        """Open a drop-down by a key and go down or up to an option: its name. (To one that is closed
        JupyterLab grants no arrow keys.)"""
        chosen, now = (
            Select(control),
            [option.is_selected() for option in Select(control).options].index(True),
        )
        self.focus(control)
        self.keys(
            Keys.SPACE,
            *[Keys.ARROW_DOWN if position > now else Keys.ARROW_UP] * abs(position - now),
            Keys.ENTER,
        )
        self.until(lambda: chosen.options[position].is_selected())
        return chosen.options[position].text

    def focus(self, control) -> None:
        self.browser.execute_script("arguments[0].focus()", control)

    def tabbed(self, panel) -> None:
        """Fail unless the Tab key, from the first of its controls on, comes to each in order, and goes out
        again."""
        wanted = [
            one
            for one in panel.find_elements(By.CSS_SELECTOR, CONTROLS)
            if one.is_displayed() and one.is_enabled()
        ]
        reached = []
        self.focus(wanted[0])
        while self.browser.execute_script("return arguments[0].contains(document.activeElement)", panel):
            reached.append(self.browser.switch_to.active_element)
            assert len(reached) <= 3 * len(wanted), "Tab does not go out."
            self.keys(Keys.TAB)
        assert [one for one in reached if one in wanted] == wanted

    def readable(self) -> None:
        """Fail on text in outputs with too little contrast."""
        found = [
            text
            for area in self.all(".jp-OutputArea-output")
            for text in self.browser.execute_script(CONTRASTS, area)
        ]
        assert len(found) > 10 and [text for text in found if text[0] < CONTRAST] == []


def labelled(panel, label: str):
    """The control beside a label: of a slider with two handles, the lower one."""
    widget = panel.find_element(By.XPATH, f".//label[normalize-space()='{label}']/..")
    return widget.find_element(By.CSS_SELECTOR, CONTROLS)


def view(panel) -> str:
    """What stands below a panel's controls."""
    return panel.find_element(By.XPATH, "./*[last()]").text


def note(panel) -> str:
    """The line above what stands there."""
    return panel.find_element(By.XPATH, "./*[last() - 1]").text


def greys(picture) -> tuple[float, float, float]:
    """The darkest, the mean and the lightest of a picture as shown, from black 0 to white 1."""
    grey = Image.open(BytesIO(picture.screenshot_as_png)).convert("L")
    low, high = grey.getextrema()
    return low / 255, ImageStat.Stat(grey).mean[0] / 255, high / 255


# what a person does


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_widget_can_be_read_and_reached_by_keys(browser, lab, theme):
    page = Page(browser, lab, "look_around", theme)
    assert len(page.all(".jp-OutputArea-output .widget-vbox")) == len(PANELS) + 1
    monitor = page.all(".jp-OutputArea-output .widget-vbox")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'start'})", monitor)
    assert "✔ finished, 3 steps" in view(monitor)
    page.shot("monitor")
    figure = page.one(".jp-RenderedImage img")
    for picture in (monitor.find_element(By.TAG_NAME, "img"), figure):
        dark, mean, bright = greys(picture)
        assert bright - dark > 0.6 and (mean < 0.3 if theme == DARK else mean > 0.9)
    page.shot("figure")
    for name, label in PANELS.items():
        page.tabbed(page.panel(label))
        page.panel(label)
        page.shot(name)
    page.readable()


def test_a_policy_is_asked(browser, lab):
    page = Page(browser, lab, "look_around")
    panel = page.panel("policy")
    assert "before training" in view(panel) and "zerosearch@1" in view(panel) and not note(panel)
    page.write(labelled(panel, "question"), "who wrote Hamlet?", Keys.ENTER)
    page.until(lambda: "holds no name that the corpus knows" in note(panel) and "Hamlet" in view(panel))
    page.choose(labelled(panel, "shade by"), 1)
    page.until(lambda: "the less likely" in view(panel))
    tokens = panel.find_elements(By.CSS_SELECTOR, "span[title^='p = ']")
    assert len(tokens) > 20 and all("log p = " in token.get_attribute("title") for token in tokens)
    page.shot("ask_log-probability")
    page.readable()
    page.choose(labelled(panel, "beside"), 0)
    page.until(lambda: "Stale" in note(panel))
    page.write(labelled(panel, "question"), " ", Keys.ENTER)
    page.until(lambda: "There is no question" in note(panel))
    assert "Hamlet" in view(panel)
    page.shot("ask_error")
    page.readable()


def test_engines_are_asked_in_the_playground(browser, lab):
    page = Page(browser, lab, "look_around", DARK)
    panel = page.panel("query")
    assert "grounded-tiny-S, noisy" in view(panel)
    page.write(labelled(panel, "question"), "what is the capital of Norway?", Keys.TAB)
    page.until(lambda: "Stale" in note(panel))
    page.shot("playground_stale")
    page.write(labelled(panel, "answer"), "Oslo")
    labelled(panel, "dense").click()
    page.focus(labelled(panel, "grounded-tiny-S, noisy"))
    page.keys(Keys.SPACE)
    page.write(labelled(panel, "query"), "capital of Norway", Keys.ENTER)
    page.until(lambda: not note(panel) and "dense" in view(panel))
    found = view(panel)
    assert "noisy" not in found and "states the answer] The capital of Norway is Oslo" in found
    page.shot("playground_asked")
    page.write(labelled(panel, "query"), " ", Keys.ENTER)
    page.until(lambda: "There is no query" in note(panel))
    assert view(panel) == found
    page.shot("playground_error")
    page.readable()
    panel.find_element(By.TAG_NAME, "button").click()
    page.until(lambda: "There is no query" in note(panel))


def test_a_question_is_followed_through_training(browser, lab):
    page = Page(browser, lab, "03_curriculum_rl")
    panel = page.panel("find")
    assert "after step 1" in view(panel) and "after step 3" in view(panel)
    page.shot("watched")
    page.readable()
    page.tabbed(panel)
    question = labelled(panel, "question")
    asked = page.choose(question, 1)
    page.until(lambda: view(panel).startswith(asked))
    page.choose(labelled(panel, "shade by"), 1)
    page.until(lambda: "the less likely" in view(panel))
    page.shot("watched_shaded")
    page.readable()


def test_trajectories_are_explored(browser, lab):
    """In the dark theme."""
    page = Page(browser, lab, "09_case_study", DARK)
    panel = page.panel("find")
    panel.find_element(By.XPATH, ".//button[normalize-space()='more filters']").click()
    page.until(lambda: labelled(panel, "noise").is_displayed())
    assert "rollout 1 of 3" in view(panel)
    page.shot("explorer")
    page.readable()
    page.tabbed(panel)
    before, step = view(panel), labelled(panel, "step")
    page.focus(step)
    page.keys(Keys.HOME)
    page.until(lambda: step.get_attribute("aria-valuetext") == "0" and view(panel) != before)
    question = labelled(panel, "question")
    asked = page.choose(question, 1)
    page.until(lambda: view(panel).startswith(asked))
    for position, name in enumerate(option.text for option in Select(labelled(panel, "shade by")).options):
        page.choose(labelled(panel, "shade by"), position)
        time.sleep(1)
        page.shot(f"explorer_{name.replace(' ', '_')}")
        page.readable()
    page.choose(labelled(panel, "noise"), 2)
    page.focus(labelled(panel, "reward"))
    page.keys(Keys.END)  # the lowest reward is now the highest there is
    page.until(lambda: "No trajectory of this run passes" in view(panel) or "reward 1.00" in view(panel))
    page.keys(Keys.HOME)
    page.choose(labelled(panel, "noise"), 0)
    before, runs = view(panel), Select(labelled(panel, "run")).options
    page.choose(
        labelled(panel, "run"), next(place for place, option in enumerate(runs) if not option.is_selected())
    )
    page.until(lambda: view(panel) != before)
    page.choose(labelled(panel, "show"), 1)
    page.until(lambda: "after step 1" in view(panel))
    assert not labelled(panel, "step").is_displayed()
    page.shot("explorer_other_run")


def test_trajectories_are_found_compared_and_saved(browser, lab, tmp_path):
    allowed = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    page = Page(browser, lab, "look_around", DARK)
    panel = page.panel("find")
    assert not labelled(panel, "its step").is_displayed()
    here = next(n for n, one in enumerate(Select(labelled(panel, "run")).options) if one.is_selected())
    page.choose(labelled(panel, "beside"), here + 1)  # after "nothing"
    page.until(lambda: view(panel).count("zerosearch@0, step") == 2)
    page.choose(labelled(panel, "shade by"), 1)
    page.until(lambda: "the less likely" in view(panel))
    page.shot("explorer_beside")
    page.readable()
    page.write(labelled(panel, "find"), "no such text", Keys.ENTER)
    page.until(lambda: "passes the filters" in view(panel))
    page.write(labelled(panel, "find"), "COUNTRY", Keys.ENTER)
    page.until(lambda: "ountry" in view(panel))
    panel.find_element(By.XPATH, ".//button[normalize-space()='more filters']").click()
    page.until(lambda: labelled(panel, "noise").is_displayed())
    page.choose(labelled(panel, "beside"), 0)
    page.until(lambda: not labelled(panel, "its step").is_displayed())
    for kind in ("HTML", "JSON"):
        link = panel.find_element(By.LINK_TEXT, kind)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", link)
        link.click()
    page.shot("explorer_saved")
    page.until(lambda: sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json"])
    saved = {path.suffix: path for path in tmp_path.iterdir()}
    question = json.loads(saved[".json"].read_text())["question"]
    assert question in view(panel) and question in saved[".html"].read_text()


def test_a_board_says_that_it_started(browser, lab):
    page = Page(browser, lab, "look_around")
    board = page.panel("Start or resume")
    start, stop, reload = board.find_elements(By.TAG_NAME, "button")
    assert "runs finished" in view(board)
    page.focus(start)
    page.keys(Keys.SPACE)
    page.until(lambda: "Starting" in note(board) or "in the background" in view(board), 5)
    page.until(lambda: "in the background" in view(board) and not start.is_enabled())
    page.until(lambda: "running" in view(board))
    page.shot("board_started")
    page.readable()
    stop.click()
    page.until(lambda: start.is_enabled() and not stop.is_enabled())
    page.focus(reload)
    page.keys(Keys.SPACE)
    page.until(lambda: "runs finished" in view(board))


def test_an_interrupted_training_shows_one_curve_and_how_to_go_on(browser, lab):
    page = Page(browser, lab, "interrupted", finish=False)
    page.until(lambda: page.all(".jp-OutputArea-output img"))
    time.sleep(6)  # it is drawn a second time
    page.keys(Keys.ESCAPE)
    page.keys("i", "i")
    page.until(page.errors)
    page.until(page.ran)
    assert len(page.all(".jp-OutputArea-output img")) == 1
    assert page.errors() == ["Stopped. Finished runs and checkpoints are kept: run the cell again to resume."]
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'end'})", page.all(".jp-OutputArea-output")[-1]
    )
    page.shot("stopped")

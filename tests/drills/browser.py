"""`make test-browser`: notebooks 00, 03 and 09 at `smoke` in JupyterLab and Chromium, used by mouse and by
keys alone.

Screenshots come to lie in outputs/browser/, for people to look at. A test fails on an output that is an
error, on an error in the browser's console, on a control that keys do not reach or move, and on text that is
hard to read. With ZS_RUNS set, runs are kept there, and found the next time.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
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
LOOK_AROUND = [
    "from zs_lib import config\nfrom zs_lib.ui import notebook, widgets\n"
    "study = config.load_profile('smoke')",
    "runs = notebook.run([(study.policy('zerosearch'), 0)])\nwidgets.monitor(*runs)",
    "widgets.board(study)",
]
"""Cells with what the tour shows for JupyterLab and no notebook holds."""
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
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in LOOK_AROUND],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    _write(folder / "notebooks" / "look_around.ipynb", nbformat.writes(made))
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
        "window-size=1400,1800",
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

    def __init__(self, browser, lab, name: str, theme: str = LIGHT):
        self.browser, self.name = browser, name
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
        """Whether each cell has its number, which it gets at its end."""
        return all(any(map(str.isdigit, prompt.text)) for prompt in self.all(".jp-CodeCell .jp-InputPrompt"))

    def errors(self) -> list[str]:
        return [
            one.text
            for one in self.all('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
        ]

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

    def panel(self, which: int = 0):
        """One of our widgets, scrolled to the top of the window."""
        shown = self.all(".jp-OutputArea-output .widget-vbox")[which]
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'start'})", shown)
        return shown

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


# what a person does


def test_engines_are_asked_in_the_playground(browser, lab):
    page = Page(browser, lab, "00_quick_start")
    panel = page.panel()
    assert "grounded-tiny-S, noisy" in view(panel)
    page.shot("playground")
    page.readable()
    page.tabbed(panel)
    for label, said in {
        "query": "capital of Norway",
        "question": "what is the capital of Norway?",
        "answer": "Oslo",
    }.items():
        field = labelled(panel, label)
        field.click()
        page.keys(Keys.END, *[Keys.BACKSPACE] * len(field.get_attribute("value")), said)
    labelled(panel, "dense").click()
    page.focus(labelled(panel, "grounded-tiny-S, noisy"))
    page.keys(Keys.SPACE)
    page.focus(panel.find_element(By.TAG_NAME, "button"))
    page.keys(Keys.ENTER)
    page.until(lambda: "dense" in view(panel))
    assert "noisy" not in view(panel) and "states the answer] The capital of Norway is Oslo" in view(panel)
    page.shot("playground_asked")
    labelled(panel, "query").clear()
    labelled(panel, "query").send_keys(" ")
    panel.find_element(By.TAG_NAME, "button").click()
    page.until(lambda: "There is no query" in view(panel))


def test_a_question_is_followed_through_training(browser, lab):
    page = Page(browser, lab, "03_curriculum_rl")
    panel = page.panel()
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
    panel = page.panel()
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


def test_monitor_and_board(browser, lab):
    page = Page(browser, lab, "look_around")
    assert "runs finished" in view(page.panel(1)) and "✔ finished, 3 steps" in view(page.panel(0))
    page.shot("monitor")
    page.readable()
    board = page.panel(1)
    page.shot("board")
    page.tabbed(board)
    page.focus(board.find_elements(By.TAG_NAME, "button")[2])
    page.keys(Keys.SPACE)
    page.until(lambda: "runs finished" in view(board))

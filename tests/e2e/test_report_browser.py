"""The report in a real browser: every figure is drawn, nothing is fetched, nothing complains."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from rlheals_ray.report import build_report, findings_of
from rlheals_ray.report.side_by_side import compare_studies
from tests.report_mechanism import whole
from tests.report_outcomes import complete, two_recipes, unfinished
from tests.report_tables import empty, nano_like, opposite, rows_of, write_study

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
MARKS = ".scatterlayer .point, .scatterlayer .js-line, .barlayer .point, .heatmaplayer image"
SECTIONS = (
    "recommendation", "headline", "healing", "controls", "curves", "losses", "rl", "spectra", "edits", "hidden",
    "predictors",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail(
            "chromium and chromedriver are needed to test the report: apt-get install chromium-driver"
        )
    options = Options()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def look(browser: webdriver.Chrome, page: Path, width: int = 1280) -> list[str]:
    """Open the page at a width, wait until it is drawn; returns every address that it asked for."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(
        lambda chrome: chrome.execute_script("return document.documentElement.dataset.drawn === 'yes'")
    )
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def unfold(browser: webdriver.Chrome) -> None:
    """Open every folded figure and wait until each plot is drawn."""
    browser.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true;")
    WebDriverWait(browser, 60).until(
        lambda chrome: chrome.execute_script(
            "return [...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg.main-svg'))"
        )
    )


def plots(browser: webdriver.Chrome) -> dict[str, dict[str, Any]]:
    """Size and number of visible marks of every plot, by its section."""
    found: dict[str, dict[str, Any]] = browser.execute_script(
        """
        const found = {};
        for (const plot of document.querySelectorAll(".plot")) {
          const svg = plot.querySelector("svg.main-svg"), box = svg && svg.getBoundingClientRect();
          const marks = [...plot.querySelectorAll(arguments[0])].map((mark) => mark.getBoundingClientRect());
          found[plot.id] = {
            section: plot.closest("section").id, width: box ? box.width : 0, height: box ? box.height : 0,
            marks: marks.filter((mark) => mark.width + mark.height > 0).length,
          };
        }
        return found;
        """,
        MARKS,
    )
    return found


@pytest.mark.parametrize("width", [1280, 420])
def test_every_figure_is_drawn_and_nothing_is_fetched(
    browser: webdriver.Chrome, tmp_path: Path, width: int
) -> None:
    tables = complete()
    page = build_report(write_study(tmp_path / "study", tables))
    requests = look(browser, page, width)
    unfold(browser)
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    assert browser.get_log("browser") == []

    drawn = plots(browser)
    assert {plot["section"] for plot in drawn.values()} == set(SECTIONS)
    for name, plot in drawn.items():
        assert plot["marks"] > 0, name
        assert plot["width"] > 300 and plot["height"] > 150, name
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width

    text = browser.execute_script("return document.body.innerText")
    for finding in findings_of(tables):
        assert finding.text in text
    assert "Not there yet" not in text


def test_text_of_the_headline_does_not_overlap(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = build_report(write_study(tmp_path / "study", nano_like()))
    for width in (1280, 420):
        look(browser, page, width)
        count, overlaps = browser.execute_script(
            """
            const texts = [...document.querySelectorAll(
              "#plot-headline :is(.annotation-text, .xtick text, .ytick text, .xtitle, .ytitle)")]
              .filter((node) => node.textContent.trim())
              .map((node) => [node.textContent, node.getBoundingClientRect()]);
            const hit = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
              && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
            return [texts.length, texts.flatMap(([a, boxA], i) =>
              texts.slice(i + 1).filter(([, boxB]) => hit(boxA, boxB)).map(([b]) => `${a} / ${b}`))];
            """
        )
        names = browser.execute_script("return document.querySelector('#headline .legend').innerText")
        assert "after SFT" in names and "after 30 RL updates" in names
        # Where there is no room, the four names beside the lines give way to the legend.
        assert count > (40 if width > 600 else 36) and overlaps == [], width


def test_a_reader_switches_between_the_views_of_a_figure(browser: webdriver.Chrome, tmp_path: Path) -> None:
    look(browser, build_report(write_study(tmp_path / "study", whole([0]))))
    shown = "return document.querySelector('#plot-layers').data.map((trace) => trace.z)"
    first = browser.execute_script(shown)
    views = browser.find_elements("css selector", "input[name=view-layers]")
    assert len(views) == 4 and views[0].is_selected()
    views[2].click()
    WebDriverWait(browser, 30).until(lambda chrome: chrome.execute_script(shown) != first)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [1200, 400])
def test_two_studies_stand_side_by_side(browser: webdriver.Chrome, tmp_path: Path, width: int) -> None:
    """What the first has left unfinished is marked with its cause; nothing is fetched, nothing sticks out."""
    cause = "<img src=x onerror=alert(1)>"
    tables = unfinished([0, 1])
    tables["branches"] = rows_of(
        "branches", [{**r, "cause": cause if r["cause"] else None} for r in tables["branches"].to_pylist()]
    )
    a = write_study(
        tmp_path / "a", tables, name="<b>one</b>", rl={"algorithm": "ppo", "budgets": [0, 15, 30]}
    )
    b = write_study(tmp_path / "b", two_recipes([0, 1]), name="two", sft={"recipe": ["plain", "lora"]})
    page = compare_studies(a, b, tmp_path / "both.html")
    requests = look(browser, page, width)
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    unfold(browser)
    assert browser.get_log("browser") == []
    drawn = plots(browser)
    assert {"plot-along-sft", "plot-healing-beside", "plot-healing-by-start", "plot-edges"} == set(drawn)
    assert all(plot["marks"] > 0 for plot in drawn.values())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    words = browser.execute_script(
        "return [...document.querySelectorAll('#plot-healing-beside .scatterlayer text')].map((n) => n.textContent)"
    )
    assert {word.strip() for word in words} == {"waiting"}
    said = browser.execute_script("return document.body.innerText")
    assert "A: <b>one</b>" in said and cause in said and "B: two (lora)" in said


def test_an_opposite_result_is_reported_as_such(browser: webdriver.Chrome, tmp_path: Path) -> None:
    look(browser, build_report(write_study(tmp_path / "study", opposite())))
    said = browser.execute_script("return document.querySelector('[data-kind=forgetting]').innerText")
    assert "SFT did not forget here" in said and "disagrees" in said
    assert browser.get_log("browser") == []


def test_an_empty_study_says_what_is_not_there_yet(browser: webdriver.Chrome, tmp_path: Path) -> None:
    look(browser, build_report(write_study(tmp_path / "study", empty())))
    for section in SECTIONS:
        said = browser.execute_script(f"return document.getElementById('{section}').innerText")
        assert "Not there yet" in said, section
    assert plots(browser) == {}
    assert browser.get_log("browser") == []


def test_figures_take_the_colours_of_a_dark_page(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = build_report(write_study(tmp_path / "study", nano_like([0])))
    grounds = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        look(browser, page)
        grounds[scheme] = browser.execute_script(
            "return [getComputedStyle(document.body).backgroundColor,"
            " document.querySelector('#plot-headline').layout.paper_bgcolor]"
        )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds == {"light": ["rgb(255, 255, 255)", "#ffffff"], "dark": ["rgb(20, 23, 26)", "#14171a"]}

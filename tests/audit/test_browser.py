"""The report in a real browser: no console error, filter and sort work, hostile text stays text."""

import shutil

import pytest

from kat.audit.report import audit
from tests.audit.test_page import HOSTILE, hostile_world
from tests.audit.worlds import two_runs

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (kat[dev])")
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1100,900"]
    for flag in (*flags, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """A report with some dozen flipped items, open in the browser."""
    folder = two_runs(tmp_path_factory.mktemp("runs"), n=120)
    report = audit(folder / "a", folder / "b", folder / "out")
    browser.get((folder / "out" / "audit.html").as_uri())
    return report


def visible_items(browser):
    found = browser.find_elements("css selector", "#all-flips details")
    return [one for one in found if one.get_attribute("hidden") is None]


def choose(browser, selector, value):
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("css selector", selector)).select_by_value(value)


def test_the_page_opens_without_a_word_on_the_console(browser, page):
    assert browser.get_log("browser") == []
    assert page.verdict.word in browser.find_element("id", "verdict").text


def test_filter_by_direction_and_by_slice(browser, page):
    assert len(visible_items(browser)) == len(page.flips)
    gained = [flip for flip in page.flips if flip.direction == "gained"]
    choose(browser, 'select[data-key="way"]', "gained")
    assert len(visible_items(browser)) == len(gained)
    subject = gained[0].slices["subject"]
    labels = browser.find_elements("css selector", ".filter label")
    number = next(label for label in labels if label.text.startswith("subject"))
    key = number.find_element("css selector", "select").get_attribute("data-key")
    choose(browser, f'select[data-key="{key}"]', subject)
    wanted = {flip.item_id for flip in gained if flip.slices["subject"] == subject}
    assert {one.get_attribute("data-item") for one in visible_items(browser)} == wanted
    assert browser.find_element("css selector", ".filter output").text.startswith(f"{len(wanted)} of {len(page.flips)}")
    choose(browser, f'select[data-key="{key}"]', "")
    choose(browser, 'select[data-key="way"]', "")


def test_search_and_sort(browser, page):
    search = browser.find_element("css selector", ".filter input")
    word = page.flips[0].item_id
    search.send_keys(f"item {word},")
    assert [one.get_attribute("data-item") for one in visible_items(browser)] == [word]
    search.clear()
    search.send_keys(" ")
    choose(browser, "select[data-sort]", "item")
    shown = [one.get_attribute("data-item") for one in visible_items(browser)]
    assert shown == sorted(flip.item_id for flip in page.flips)
    choose(browser, "select[data-sort]", "order")
    assert [one.get_attribute("data-item") for one in visible_items(browser)] == [flip.item_id for flip in page.flips]


def test_an_item_opens_by_keyboard_and_shows_both_responses(browser, page):
    from selenium.webdriver.common.keys import Keys

    first = browser.find_element("css selector", "#all-flips details")
    first.find_element("css selector", "summary").send_keys(Keys.ENTER)
    assert first.get_attribute("open") is not None
    assert page.flips[0].choices[0] in first.text


def test_hostile_text_stays_text(browser, tmp_path):
    hostile_world(tmp_path, HOSTILE)
    audit(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    browser.get_log("browser")
    browser.get((tmp_path / "out" / "audit.html").as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('img, iframe, object').length") == 0
    assert browser.execute_script("return document.scripts.length") <= 1
    assert "alert(1)" in browser.find_element("tag name", "main").get_attribute("textContent")

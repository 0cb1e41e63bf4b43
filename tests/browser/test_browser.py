"""The report in a real browser: headless Chromium, driven by selenium (nox -s browser)."""

import base64
import io
import math
import os
import shutil
from pathlib import Path

import pytest
from records import write_experiment
from test_report import HOSTILE, make_losses, write_metrics

import meticulous

pytestmark = pytest.mark.browser

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars"""
# Of the README's picture, in pixels.
SIZE = (1000, 790)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Write a report of 12 runs, some dead, some with hostile names, and return its path."""
    directory = tmp_path_factory.mktemp("project") / "experiments"
    for number in range(1, 13):
        status = "ERROR\nTraceback\nValueError: loss is not finite" if number == 3 else "SUCCESS"
        args, summary = {"lr": 0.1 / number, "model": "net"}, {"loss": (number * 7) % 12}
        if number == 5:
            args["model"], summary = HOSTILE * 9, {HOSTILE: 1}
        start = f"2026-03-04T05:{number:02}:07.000008"
        folder = write_experiment(directory, number, args, summary, status, start)
        write_metrics(folder, make_losses(40, number))
    path = directory.parent / "report.html"
    assert meticulous.main(["report", str(directory), "-o", str(path)]) == 0
    return path


@pytest.fixture
def show(driver):
    """Give a function that opens a page, and look for errors and requests at the end."""

    def open_page(path, width=1400, scheme="light", script=True):
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(path.as_uri())
        return driver

    for name in ("browser", "performance"):
        driver.get_log(name)
    yield open_page
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert driver.get_log("browser") == []
    messages = [entry["message"] for entry in driver.get_log("performance")]
    requests = [m for m in messages if "Network.requestWillBeSent" in m and '"documentURL":"file:' in m]
    assert [message for message in requests if '"url":"file:' not in message] == []


def read_ids(driver):
    return driver.execute_script("return all('.runs tbody tr').map(row => row.cells[0].textContent.trim())")


def find_title(driver, title):
    return next(th for th in driver.find_elements("css selector", "th[scope=col]") if title in th.text)


def test_a_click_sorts_up_and_another_down_with_missing_values_last(show, page):
    driver = show(page)
    title = find_title(driver, "loss")
    losses = {str(number): (number * 7) % 12 for number in range(1, 13) if number != 5}
    for direction in ("ascending", "descending"):
        title.find_element("tag name", "button").click()
        assert title.get_attribute("aria-sort") == direction
        expected = sorted(losses, key=losses.get, reverse=direction == "descending")
        assert read_ids(driver) == [*expected, "5"]


def test_the_keyboard_sorts(show, page):
    from selenium.webdriver.common.keys import Keys

    driver = show(page)
    title = find_title(driver, "status")
    title.find_element("tag name", "button").send_keys(Keys.ENTER)
    assert title.get_attribute("aria-sort") == "ascending"
    assert read_ids(driver)[0] == "3"


def test_focus_on_a_run_brings_its_curves_to_the_front_and_names_it(show, page):
    driver = show(page)
    driver.execute_script("document.querySelectorAll('.runs tbody a')[11].focus()")
    assert driver.find_element("id", "picked").text.startswith("12 ")
    last = driver.execute_script("return document.querySelector('figure g').lastElementChild.dataset.run")
    assert last == "11"


def test_the_pointer_near_a_curve_names_it(show, page):
    from selenium.webdriver.common.action_chains import ActionChains

    driver = show(page)
    x, y = driver.execute_script("""
        const path = document.querySelector("figure path[data-run='11']");
        path.ownerSVGElement.scrollIntoView({block: "center"});
        const start = path.getPointAtLength(0).matrixTransform(path.getScreenCTM());
        return [start.x, start.y];
    """)
    actions = ActionChains(driver)
    actions.w3c_actions.pointer_action.move_to_location(round(x) - 3, round(y))
    actions.perform()
    assert driver.find_element("id", "picked").text.startswith("12 ")


def test_a_link_opens_the_story(show, page):
    driver = show(page)
    driver.find_element("css selector", ".runs tbody tr:nth-child(3) a").click()
    assert driver.find_element("id", "r2").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(show, page, width, scheme):
    driver = show(page, width, scheme)
    driver.execute_script("all('details').forEach(details => details.open = true)")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    boxes = driver.execute_script("""
        return all("figure svg text").map(text => [text, text.ownerSVGElement].map(
            element => { const box = element.getBoundingClientRect(); return [box.left, box.right] }));
    """)
    assert boxes and all(outer[0] - 0.5 <= text[0] and text[1] <= outer[1] + 0.5 for text, outer in boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(show, page, scheme):
    axe = os.environ.get("AXE")
    if not axe:
        pytest.skip("AXE names no axe.min.js")
    driver = show(page, scheme=scheme)
    driver.execute_script("all('details')[2].open = true")
    driver.execute_script(Path(axe).read_text("utf-8"))
    result = driver.execute_async_script("axe.run().then(arguments[0])")
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in result["violations"]] == []


def test_without_javascript_there_is_the_table_the_curves_and_no_dead_button(show, page):
    driver = show(page, script=False)
    assert driver.find_elements("css selector", "figure path[data-run]")
    assert driver.find_elements("tag name", "button") == []
    driver.find_element("tag name", "summary").click()
    assert driver.find_element("id", "r0").is_displayed()


def test_it_prints(show, page):
    driver = show(page)
    pdf = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 10000


def test_the_picture_of_the_readme(show, tmp_path):
    """Write it where the variable PICTURE says; its runs learn the same in every run."""
    from random import Random

    from PIL import Image

    random = Random(1)
    directory = tmp_path / "mnist" / "experiments"
    for number, (lr, model) in enumerate([(lr, m) for lr in (0.1, 0.03, 0.01) for m in ("mlp", "cnn")], 1):
        rows = []
        for step in range(0, 1001, 10):
            loss = 2.3 * math.exp(-lr * step / 12) + (0.1 if model == "cnn" else 0.2) + random.gauss(0, 0.01)
            rows.append({"step": step, "loss": loss, "accuracy": 1 - loss / 2.9})
        is_dead = number == 2
        status = "ERROR\nTraceback\nCUDA out of memory" if is_dead else "SUCCESS"
        summary = {} if is_dead else {"loss": rows[-1]["loss"], "accuracy": rows[-1]["accuracy"]}
        start = f"2026-03-04T05:{number:02}:07.000008"
        folder = write_experiment(directory, number, {"lr": lr, "model": model}, summary, status, start)
        write_metrics(folder, rows[:30] if is_dead else rows)
    path = tmp_path / "report.html"
    assert meticulous.main(["report", str(directory), "-o", str(path)]) == 0
    driver = show(path, SIZE[0])
    size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    picture = tmp_path / "report.png"
    Image.open(io.BytesIO(driver.get_screenshot_as_png())).quantize(256).save(str(picture), optimize=True)
    assert picture.stat().st_size < 100000
    if os.environ.get("PICTURE"):
        shutil.copy(str(picture), os.environ["PICTURE"])

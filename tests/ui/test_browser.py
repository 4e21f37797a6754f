"""A user in a real browser: the form, a run, its MLflow page; and what the form refuses. Needs chromium and its driver.

`make test-ui`. Screenshots go to docs/images when SCREENSHOTS=1.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytestmark = [
    pytest.mark.ui,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver") and os.environ.get("TEST_UI")),
        reason="needs chromium and chromedriver; called by make test-ui",
    ),
]
ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"


def free() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """`transferopt serve` as a user starts it, on free ports and a home of its own."""
    prefect, mlflow = free(), free()
    home = tmp_path_factory.mktemp("served")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    ports = ["--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    with open(home / "serve.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from flows.cli import main; main()", "serve", *ports],
            cwd=ROOT,
            env={**kept, "TRANSFEROPT_HOME": str(home)},
            stdout=log,
            stderr=log,
        )
    until = time.monotonic() + 300
    while "Ctrl-C" not in (home / "serve.log").read_text():
        assert process.poll() is None, (home / "serve.log").read_text()
        assert time.monotonic() < until, (home / "serve.log").read_text()
        time.sleep(1)
    yield f"http://127.0.0.1:{prefect}", f"http://127.0.0.1:{mlflow}"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    size = ["--window-size=1400,1000", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]
    for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet, *size]:
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.implicitly_wait(20)
    yield driver
    driver.quit()


def see(browser, text: str, seconds: float = 60) -> None:
    """Wait until ``text`` is on the page."""
    until = time.monotonic() + seconds
    while text not in browser.find_element("tag name", "body").text:
        assert time.monotonic() < until, f"{text!r} is not on {browser.current_url}"
        time.sleep(0.5)


def shoot(browser, name: str, settle_s: float = 2) -> None:
    if os.environ.get("SCREENSHOTS"):
        time.sleep(settle_s)
        IMAGES.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(IMAGES / f"{name}.png"))


def deployment_of(api: str, flow: str) -> str:
    reply = httpx.get(f"{api}/api/deployments/name/{flow}/transferopt", timeout=60)
    return reply.raise_for_status().json()["id"]


def runs_of(api: str) -> list[dict]:
    return httpx.post(f"{api}/api/flow_runs/filter", json={}, timeout=60).raise_for_status().json()


def field(name: str) -> str:
    """XPath of a parameter's place in the form."""
    label = f"//span[normalize-space(text())='{name} (Optional)']"
    return f"{label}/ancestor::div[contains(@class,'schema-form-property')][contains(@class,'p-label')][1]"


def button(browser, text: str, within: str = ""):
    return browser.find_element("xpath", f"{within}//button[normalize-space(.)='{text}']")


def enter(browser, name: str, value: int) -> None:
    """Type a number; an optional parameter is first switched from None to a number."""
    from selenium.webdriver.common.keys import Keys

    for kind in browser.find_elements("xpath", f"{field(name)}//button[normalize-space(.)='int']"):
        browser.execute_script("arguments[0].click()", kind)
    box = browser.find_element("xpath", f"{field(name)}//input[@type='number']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(str(value))


def choose(browser, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("xpath", f"{field(name)}//select")).select_by_visible_text(value)


def open_form(browser, prefect: str, flow: str) -> None:
    browser.get(f"{prefect}/deployments/deployment/{deployment_of(prefect, flow)}/run")
    see(browser, "draws, initialisation", 120)


def test_the_form_explains_and_refuses(servers, browser):
    prefect, _ = servers
    open_form(browser, prefect, "merge")
    see(
        browser, "training examples an expert (empty: by size and number of tasks); at least 8"
    )  # description and bound
    assert browser.find_element("xpath", f"{field('base')}//textarea").get_attribute("value") == "all-minilm-l6-v2"
    assert browser.find_element("xpath", f"{field('size')}//select").text.split() == ["smoke", "default", "full"]
    enter(browser, "seed", -1)
    button(browser, "Submit").click()
    see(browser, "-1 is less than the minimum of 0")
    shoot(browser, "refused")
    assert runs_of(prefect) == []


def wait_for_end(prefect: str, run: str, seconds: float) -> dict:
    until = time.monotonic() + seconds
    while True:
        found = httpx.get(f"{prefect}/api/flow_runs/{run}", timeout=60).raise_for_status().json()
        if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED"):
            return found
        assert time.monotonic() < until, found["state"]
        time.sleep(2)


def test_form_run_result_and_lineage(servers, browser):
    prefect, mlflow = servers
    open_form(browser, prefect, "merge")
    choose(browser, "size", "smoke")
    enter(browser, "most_tasks", 2)
    enter(browser, "examples", 800)  # training of more than a second, on a fast machine too: it has a progress bar
    shoot(browser, "form")
    button(browser, "Submit").click()
    until = time.monotonic() + 60
    while not (started := runs_of(prefect)):
        assert time.monotonic() < until, browser.find_element("tag name", "body").text
        time.sleep(0.5)
    run = wait_for_end(prefect, started[0]["id"], 600)
    browser.get(f"{prefect}/runs/flow-run/{run['id']}")
    assert run["state_type"] == "COMPLETED", run["state"]
    assert (run["parameters"]["size"], run["parameters"]["most_tasks"]) == ("smoke", 2)
    assert run["name"].startswith("merge smoke")
    see(browser, "Completed")
    shoot(browser, "run", settle_s=10)  # the picture of its stages is drawn
    found = {"flow_run_id": {"any_": [run["id"]]}}
    artifacts = httpx.post(f"{prefect}/api/artifacts/filter", json={"artifacts": found}, timeout=30).json()
    assert {"table", "progress"} <= {a["type"] for a in artifacts}
    browser.find_element("id", "artifacts").click()
    see(browser, "merge-mlflow")
    link = next(a for a in artifacts if a["key"] == "merge-mlflow")
    browser.get(f"{prefect}/artifacts/artifact/{link['id']}")
    anchor = browser.find_element("xpath", "//a[contains(., 'MLflow run')]")
    address = anchor.get_attribute("href")
    assert address.startswith(mlflow)
    in_mlflow(browser, address)


def in_mlflow(browser, address: str) -> None:
    """The run's page as the link opens it: description, child runs, metrics, a plot, lineage."""
    place, _, asked = address.partition("?")
    browser.get(address)
    see(browser, "train-expert", 120)
    see(browser, "transferopt run merge")  # the description
    close_assistant(browser)
    shoot(browser, "mlflow")
    browser.get(f"{place}/model-metrics?{asked}")
    see(browser, "accuracy", 120)
    browser.find_element("css selector", ".js-plotly-plot")
    shoot(browser, "metrics")
    browser.get(f"{place}/artifacts?{asked}")
    see(browser, "accuracy.png", 120)
    click_file(browser, "accuracy.png")
    picture = "//img[contains(@src, 'accuracy') or starts-with(@src, 'blob:') or starts-with(@src, 'data:image')]"
    until = time.monotonic() + 60
    while not any(int(i.get_attribute("naturalWidth") or 0) > 300 for i in browser.find_elements("xpath", picture)):
        assert time.monotonic() < until, "the plot is not shown"
        time.sleep(0.5)
    click_file(browser, "lineage.html")
    frame = browser.find_element("css selector", "iframe")
    browser.switch_to.frame(frame)
    see(browser, "train-expert")
    see(browser, "load-model")
    browser.switch_to.default_content()
    shoot(browser, "lineage")


def click_file(browser, name: str) -> None:
    browser.execute_script("arguments[0].click()", browser.find_element("css selector", f"[artifact-name='{name}']"))


def close_assistant(browser) -> None:
    """MLflow opens a chat panel beside the run the first time."""
    for close in browser.find_elements("css selector", "[data-component-id='mlflow.assistant.chat_panel.close']"):
        browser.execute_script("arguments[0].click()", close)


def test_a_wrong_value_is_refused(servers):
    prefect, _ = servers
    deployment = deployment_of(prefect, "merge")
    for parameters, word in (({"size": "huge"}, "huge"), ({"examples": 1}, "8"), ({"seed": "x"}, "x")):
        body = {"parameters": parameters}
        reply = httpx.post(f"{prefect}/api/deployments/{deployment}/create_flow_run", json=body, timeout=30)
        assert reply.status_code in (409, 422), reply.text
        assert word in reply.text

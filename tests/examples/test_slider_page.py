"""The app in a headless browser; skipped where gradio, selenium or Chromium is missing."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def address() -> Iterator[str]:
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / "slider_app.py"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(address) or process.poll() is not None)
        assert process.poll() is None
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=5).status == 200)
    except OSError:
        return False


def until(condition: Callable[[], object], seconds: float = 120) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "nothing happened"
        time.sleep(0.05)
    return time.monotonic() - start


def test_moving_a_slider_changes_the_image_and_the_other_slider(address: str, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1400,900"):
        options.add_argument(f"--{flag}")
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        page.get(address)

        def found(selector: str) -> list:
            return page.find_elements("css selector", selector)

        def source() -> str:
            return str(page.execute_script("return document.querySelector('#image img')?.src ?? ''"))

        def number(name: str) -> float:
            value = page.execute_script(f"return document.querySelector('#slider-{name} input[type=number]')?.value")
            return float(value)

        until(lambda: source() and found("#slider-colour input[type=range]"))
        before = source()
        page.execute_script(
            "const s = document.querySelector('#slider-colour input[type=range]'); s.value = 0.97;"
            "s.dispatchEvent(new Event('input', {bubbles: true})); s.dispatchEvent(new Event('change'));"
        )
        seconds = until(lambda: source() != before)
        until(lambda: abs(number("soft") - 0.03) < 1e-6)
        time.sleep(1)
        folder = Path(os.environ.get("SLIDER_SCREENSHOTS", tmp_path))
        page.save_screenshot(str(folder / "slider_app.png"))
        print(f"the image followed after {seconds:.2f} s")
        assert number("colour") == pytest.approx(0.97)
    finally:
        page.quit()

"""A real browser, Debian's chromium, without a window. Where there is none these tests are skipped and say why; with
DICACHE_BROWSER=required, as `.ci/run` sets it, they fail instead.
"""

import base64
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
NEEDED = "apt-get install -y chromium chromium-driver"


def missing() -> str:
    """What keeps a browser from being driven; empty where nothing does."""
    if find_spec("selenium") is None:
        return "selenium is not installed: pip install 'dicache[test]'"
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"there is no {' and no '.join(absent)}: {NEEDED}" if absent else ""


class Browser:
    """One tab; `widths` are those of a screen and of a phone."""

    def __init__(self, folder: Path) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = Chrome(options=options, service=Service(executable_path=str(shutil.which("chromedriver"))))
        self.driver.set_page_load_timeout(300)
        self.driver.set_script_timeout(300)

    def open(self, url: str, size: str) -> None:
        width, height = WIDTHS[size]
        phone = size == "phone"
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(url)
        self.width = width

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What stands in the console: errors of scripts, and what could not be loaded."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if "favicon" not in entry["message"]]

    def too_wide(self) -> list[str]:
        """What reaches over the right edge of the screen, so that one would have to scroll."""
        return self.run(
            "const most = arguments[0];"
            "const wide = [...document.body.querySelectorAll('*')]"
            "  .filter(e => e.getBoundingClientRect().right > most + 0.5).map(e => e.outerHTML.slice(0, 120));"
            "if (document.documentElement.scrollWidth > most) wide.push('the page');"
            "return wide;",
            self.width,
        )

    def screenshot(self, name: str = "") -> bytes:
        """Of the whole page; under this name into the folder DICACHE_SCREENSHOTS too, where that is set: the docs'
        pictures are made so.
        """
        height = self.run("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
        asked = {"captureBeyondViewport": True, "clip": clip}
        data = base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])
        folder = os.environ.get("DICACHE_SCREENSHOTS")
        if folder and name:
            Path(folder, f"{name}.png").write_bytes(data)
        return data


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if why := missing():
        if os.environ.get("DICACHE_BROWSER") == "required":
            pytest.fail(f"DICACHE_BROWSER=required, and {why}")
        pytest.skip(why)
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.driver.quit()

"""The docs' site in a real browser, as wide as a screen and as wide as a phone."""

import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "": "dicache",
    "choosing/": "Which number to choose",
    "promise/": "The promise",
}
"""By their addresses, the first heading of each."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    """Its address; built only where there is a browser to look at it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def broken(browser):
    """Pictures that did not load."""
    return browser.run("return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_and_fits(browser, site, page, size):
    browser.open(site + page, size)
    assert browser.run("return document.querySelector('h1').firstChild.textContent").strip() == PAGES[page]
    assert not browser.complaints() and not broken(browser)
    wide = "return document.documentElement.scrollWidth > arguments[0] ? ['the page'] : []"
    assert not browser.run(wide, browser.width), "one would have to scroll sideways"
    table = "return [...document.querySelectorAll('article table')].every(t => t.querySelectorAll('tr').length > 1)"
    assert browser.run(table)
    assert not browser.run(
        "return [...document.querySelectorAll('article p')].filter(p => /^\\|/.test(p.innerText)).length"
    )


def test_links_of_the_first_page_lead_somewhere(browser, site):
    browser.open(site, "desktop")
    links = browser.run("return [...document.querySelectorAll('article a[href], nav a[href]')].map(a => a.href)")
    inner = sorted({link.partition("#")[0] for link in links if link.startswith(site)})
    assert len(inner) > 10
    fetched = browser.driver.execute_async_script(
        "const done = arguments[1];Promise.all(arguments[0].map(u => fetch(u).then(r => [u, r.status]))).then(done);",
        inner,
    )
    assert [address for address, status in fetched if status != 200] == []

"""The page of `dicache demo --web` in a real browser, as wide as a screen and as wide as a phone."""

import pytest

from dicache.web.application import CAPTIONS, demo
from helpers.requesting import Listening

STEPS = 12


@pytest.fixture(scope="module")
def server():
    server = Listening(demo(error_budget=0.1, steps=STEPS))
    yield server
    server.stop()


@pytest.fixture(params=["desktop", "phone"])
def size(request):
    return request.param


@pytest.fixture
def page(browser, server, size):
    browser.open(f"http://127.0.0.1:{server.port}/", size)
    wait(browser)
    return browser


def wait(browser, state="done"):
    """Until the drawing is over."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, 300).until(
        lambda driver: driver.execute_script("return document.body.dataset.state") != "drawing"
    )
    assert browser.run("return document.body.dataset.state") == state, browser.run("return said.innerText")


def text(browser, name):
    return browser.run("return document.getElementById(arguments[0]).innerText", name)


def strip(browser):
    return browser.run("return [...document.querySelectorAll('#strip span')].map(mark => mark.title.split(': ')[1])")


def set_slider(browser, value):
    """As a hand does: the slider moves, then it is let go."""
    browser.run(
        "const slider = document.getElementById('slider'); slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change'));",
        value,
    )


def test_both_pictures_stand_side_by_side_above_the_decisions(page, size):
    assert not page.too_wide() and not page.complaints()
    boxes = page.run(
        "return ['uncached', 'cached', 'strip'].map(name => { const it = document.getElementById(name);"
        "const box = it.getBoundingClientRect();"
        "return [box.left, box.top, box.right, box.bottom, it.naturalWidth] })"
    )
    (left, right, below), phone = boxes, size == "phone"
    assert left[4] == right[4] == 32 and left[1] == right[1] and left[2] <= right[0] and below[1] >= left[3]
    assert left[2] - left[0] > (150 if phone else 300)
    assert len(strip(page)) == STEPS and strip(page)[0] == "compute" and len(set(strip(page))) > 1
    assert text(page, "budget") == "10.00 %" and text(page, "speedup").endswith("x")
    page.screenshot("" if phone else "demo-desktop")


def test_the_slider_decides_what_is_drawn(page):
    set_slider(page, 0)
    assert text(page, "budget") == "0.00 %"
    wait(page)
    assert set(strip(page)) == {"compute"} and text(page, "work") == "100 %" and text(page, "true").startswith("0.00 %")
    assert page.run("return document.getElementById('cached').src == document.getElementById('uncached').src")
    set_slider(page, 100)
    wait(page)
    assert text(page, "budget") == "50.00 %" and strip(page).count("compute") < STEPS / 2
    assert page.run("return document.getElementById('cached').src != document.getElementById('uncached').src")
    assert not page.complaints()


def test_a_key_moves_it_too(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    before = text(page, "budget")
    page.driver.find_element(By.ID, "slider").send_keys(Keys.ARROW_RIGHT)
    wait(page)
    assert float(text(page, "budget").split()[0]) > float(before.split()[0])


def test_a_caption_that_is_none_is_said(page):
    page.run(
        "const caption = document.getElementById('caption'); caption.value = arguments[0];"
        "caption.dispatchEvent(new Event('change'));",
        "a <b>photo</b> of a cat",
    )
    wait(page, "refused")
    assert "does not know the word" in text(page, "said") and not page.too_wide()
    assert CAPTIONS[0] in page.run("return [...document.querySelectorAll('datalist option')].map(each => each.value)")


def test_fields_have_labels(page):
    unlabelled = "return [...document.querySelectorAll('input')].filter(each => !each.labels.length).length"
    assert page.run(unlabelled) == 0
    assert page.run("return document.documentElement.lang") == "en"

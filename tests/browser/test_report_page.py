"""The page of a report in a real browser, as wide as a screen and as wide as a phone."""

import io

import pytest
import torch
from PIL import Image

import dicache
from dicache.reporting.page import COLOURS, WORDS
from dicache.types import Action

STEPS = 28
BUDGETS = [0.02, 0.05, 0.2]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A report on three captions by a profile, its page, and the page of the same run with nothing to show."""
    pipe, prompts = dicache.reference.pipeline(), dicache.reference.prompts("test", 3)
    pipe.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe(
            prompts, negative_prompt="", true_cfg_scale=3.5, num_inference_steps=STEPS, generator=generator
        ).images

    uncached = draw()
    with dicache.enable(pipe, error_budget=BUDGETS, confidence=0.9) as cache:
        pictures = draw()
    report, folder = cache.report(), tmp_path_factory.mktemp("pages")
    report.save_html(folder / "full.html", pictures=pictures, prompts=prompts, uncached=uncached)
    report.save_html(folder / "plain.html")
    return report, prompts, folder


@pytest.fixture(params=["desktop", "phone"])
def size(request):
    return request.param


@pytest.fixture
def page(browser, drawn, size):
    browser.open((drawn[2] / "full.html").as_uri(), size)
    return browser


def test_nothing_reaches_over_the_edge_and_nothing_is_missing(page, browser, drawn, size):
    assert not page.too_wide()
    assert page.run("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert not page.complaints()
    browser.open((drawn[2] / "plain.html").as_uri(), size)
    assert not browser.too_wide() and browser.run("return document.querySelectorAll('.shown').length") == 0


def test_every_prompt_has_its_pictures_and_its_strip(page, drawn):
    report, prompts, _ = drawn
    captions = page.run("return [...document.querySelectorAll('.shown figcaption')].map(each => each.innerText)")
    assert captions == [f"{i}: {prompt}" for i, prompt in enumerate(prompts)]
    titles = page.run("return [...document.querySelectorAll('.shown img')].map(image => image.title)")
    assert titles == ["within the budget", "uncached"] * len(prompts)
    pixelated = "return getComputedStyle(document.querySelector('.shown img')).imageRendering"
    assert page.run(pixelated) == "pixelated", "32 pixels are to be seen"
    strips = page.run(
        "return [...document.querySelectorAll('.dicache tr')].slice(1).map(row => [...row.querySelectorAll('.step')]"
        ".map(step => [getComputedStyle(step).backgroundColor, step.title, step.getBoundingClientRect().width]))"
    )
    for sample, steps in zip(report.to_dict()["samples"], strips, strict=True):
        actions = [Action[names[0].upper()] for names in sample["actions"]]
        assert [colour for colour, _, _ in steps] == [rgb(COLOURS[action]) for action in actions]
        assert all(WORDS[action] in title for action, (_, title, _) in zip(actions, steps, strict=True))
        assert all(width >= 8 for _, _, width in steps), "wide enough to point at"


def rgb(colour):
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_numbers_stand_under_their_headings(page, drawn):
    cells = page.run(
        "return [...document.querySelectorAll('.dicache tr')].map(row => [...row.children].map(cell => "
        "[cell.innerText.trim(), cell.getBoundingClientRect().left, cell.getBoundingClientRect().top]))"
    )
    head, *rows = cells
    assert [text for text, _, _ in head] == ["sample", "budget", "estimated error", "work", "decisions"]
    for budget, row in zip(BUDGETS, rows, strict=True):
        assert row[1][0] == f"{budget:.4f}"
        assert all(row[k][1] - head[k][1] > -1 for k in range(4)), "no column slips to the left of its heading"
        assert len({top for _, _, top in row[:4]}) == 1, "one line of numbers"


def test_the_legend_names_every_colour(page):
    legend = page.run(
        "const it = document.querySelector('.legend'); return [it.innerText, getComputedStyle(it).visibility, "
        "[...it.querySelectorAll('.step')].map(step => getComputedStyle(step).backgroundColor)]"
    )
    assert legend[1] == "visible" and all(word in legend[0] for word in WORDS.values())
    assert set(map(rgb, COLOURS.values())) <= set(legend[2])


def test_the_timeline_is_drawn_for_the_width(page, size):
    width, height, shown = page.run(
        "const image = document.querySelector('picture img');"
        "return [image.naturalWidth, image.naturalHeight, image.getBoundingClientRect().width]"
    )
    assert (width > height) == (size == "desktop") and shown >= 0.8 * min(width, page.run("return innerWidth") - 40)


def test_long_words_and_many_samples_fit(browser, size, tmp_path):
    from dicache.reporting.page import Shown
    from dicache.reporting.page import page as page_of

    sample = {"budget": None, "estimated_error": 0.5, "true_error": 0.25, "computed_fraction": 0.5, "steps": 100}
    sample |= {"actions": [["compute", "reuse"], ["zero", "zero"]] * 50, "reasons": [["planned"] * 2] * 100}
    facts = {"headline": "dicache: 2.00x less computed", "model": "M" * 300, "scheduler": "S" * 300}
    facts |= {"samples": [sample] * 12, "steps": [{"estimated_error": [0.1] * 12}] * 100, "executed_macs": 1.0}
    facts |= {"uncached_macs": 2.0, "side_networks": [], "profile": None, "cache_bytes": 8, "audit": None}
    facts |= {"warnings": ["w" * 500]}
    (tmp_path / "long.html").write_text(page_of(facts, [Shown("p" * 500)] * 12))
    browser.open((tmp_path / "long.html").as_uri(), size)
    assert not browser.too_wide()


def test_a_screenshot_shows_it(page, size):
    picture = Image.open(io.BytesIO(page.screenshot("report-desktop" if size == "desktop" else "")))
    assert picture.width >= 390 and len(picture.convert("RGB").getcolors(1 << 24)) > 50

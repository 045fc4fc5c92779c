"""Progress that a log file can show, and times and work in words."""

import pytest

from dicache.reporting import progress as module
from dicache.reporting.progress import LineProgress, progress
from dicache.reporting.words import duration, macs, size, spent


def test_where_stderr_is_a_file_progress_is_whole_lines(capsys, monkeypatch):
    monkeypatch.setattr(module, "SOON", 0.0)
    with progress() as bar:
        assert isinstance(bar, LineProgress)
        task = bar.add_task("drawing [red]", total=40)
        for _ in range(40):
            bar.advance(task)
        bar.update(task, advance=0)
    output, errors = capsys.readouterr()
    lines = errors.splitlines()
    assert not output and "\r" not in errors and len(lines) == 10, "one at every tenth"
    assert lines[0].startswith("drawing [red]: 4 of 40, about") and lines[-1].startswith(
        "drawing [red]: 40 of 40, done in"
    )


def test_lines_are_no_closer_than_a_second(capsys, monkeypatch):
    moments = iter(0.01 * k for k in range(1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(moments))
    with progress() as bar:
        task = bar.add_task("drawing", total=40)
        for _ in range(40):
            bar.advance(task)
    assert capsys.readouterr().err.splitlines() == [f"drawing: 40 of 40, done in {duration(0.4)}"]


def test_nothing_is_shown_where_nothing_is_to_be(capsys):
    with progress(shown=False) as bar:
        bar.advance(bar.add_task("drawing", total=1))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (duration(3.14), "3.1 seconds"),
        (duration(75), "75 seconds"),
        (duration(600), "10.0 minutes"),
        (duration(7200), "2.0 hours"),
        (macs(12), "12 MACs"),
        (macs(3.21e12), "3.21 tera-MACs"),
        (size(100), "100 bytes"),
        (size(3 << 20), "3 MiB"),
        (spent(60, 4, 0, 0), "It took 60 seconds for 4 samples."),
        (
            spent(60, 4, 1e9, 2e9),
            "It took 60 seconds for 4 samples: 1 giga-MACs of the denoiser, where drawing all of them uncached would "
            "have been 2 giga-MACs.",
        ),
    ],
)
def test_times_work_and_sizes_are_words(text, expected):
    assert text == expected

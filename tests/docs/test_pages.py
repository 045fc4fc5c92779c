"""What the docs say is there is there: the site builds strictly, generated pages are those of today, and no page names
a command, a file or a module that does not exist.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from dicache._moved import MOVED
from dicache.bench.harness.store import load
from dicache.bench.showing import pages, show
from dicache.bench.showing.tables import markdown
from dicache.bench.studies import coverage
from dicache.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "bench" / "results"
MAIN = "euler-28-guidance3.5-shift1-batch8"
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md", *sorted(DOCS.rglob("*.md"))]


def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("index.html")}
    assert {"index.html", "api/parts/index.html", f"benchmarks/{MAIN}/index.html", "cli/index.html"} <= written
    assert "dicache.enable" in (tmp_path / "api" / "index.html").read_text()


def test_generated_pages_are_up_to_date():
    generated = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    stale = [path.name for path, text in generated.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"{stale}: run python docs/generate.py"


def test_the_walk_of_a_step_passes_every_file_of_the_runtime():
    walk = (DOCS / "architecture.md").read_text()
    assert not [path.name for path in (ROOT / "dicache" / "runtime").glob("[a-z]*.py") if f"/{path.name}:" not in walk]


def test_a_place_that_is_not_there_is_an_error():
    with_lines = runpy.run_path(str(DOCS / "generate.py"))["_with_lines"]
    assert (
        with_lines("`Session.begin` (`dicache/runtime/session.py:1`)")
        != "`Session.begin` (`dicache/runtime/session.py:1`)"
    )
    with pytest.raises(LookupError, match="nothing is called vanish"):
        with_lines("`Session.vanish` (`dicache/runtime/session.py:1`)")


def test_the_tables_of_the_results_are_up_to_date():
    named = {path.stem: facts for path, facts in show.results(RESULTS).items()}
    readme, page = (ROOT / "README.md").read_text(), (DOCS / "benchmarks.md").read_text()
    table = pages.readme_table(named[MAIN])
    assert len(table) == 7 and pages.filled(readme, "bench", markdown(table)) == readme
    assert pages.filled(readme, "losses", pages.readme_losses(named[MAIN])) == readme
    for name, body in pages.sections(named, MAIN).items():
        assert pages.filled(page, name, body) == page, name
    assert pages.filled(page, "coverage", coverage.brief_tables(load(RESULTS / "coverage.json"))) == page
    choosing = (DOCS / "choosing.md").read_text()
    assert pages.filled(choosing, "budgets", markdown(pages.budget_table(named[MAIN]))) == choosing


@pytest.mark.parametrize(("name", "most"), [("README.md", 9216), ("CONTRIBUTING.md", 8192)])
def test_the_first_pages_stay_short(name, most):
    assert len((ROOT / name).read_bytes()) <= most


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_files_and_modules_that_a_page_names_exist(text):
    written = text.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", written) if "://" not in link]
    missing = [link for link in links if link and not (text.parent / link).exists()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", written, flags=re.DOTALL))
    files = [span for span in spans if re.fullmatch(r"[\w.+-]+(/[\w.+-]+)+\.(py|md|json|safetensors|png)", span)]
    missing += [name for name in files if not (ROOT / name).exists()]
    modules = re.findall(r"python -m (dicache[\w.]*)", written)
    missing += [name for name in modules if not _is_module(name)]
    assert not missing


@pytest.mark.parametrize("text", [*TEXTS, *sorted(DOCS.rglob("*.ipynb"))], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_names_modules_where_they_are_and_imports_as_users_do(text):
    written = text.read_text(encoding="utf-8")
    named = set(re.findall(r"\bdicache(?:\.[a-z_]\w*)+", written))
    assert not named & set(MOVED)
    assert not re.findall(r"\bfrom (dicache\.\w+\.[\w.]+) import", written)


def _is_module(name: str) -> bool:
    first, *rest = name.split(".")[1:] or ["__main__"]
    folder = ROOT / first if (ROOT / first).is_dir() else ROOT / "dicache" / first
    path = folder.joinpath(*rest)
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def _lines():
    """Every line of every block of shell."""
    for text in TEXTS:
        for block in re.findall(r"^```sh\n(.*?)^```", text.read_text(), re.DOTALL | re.MULTILINE):
            yield from (shlex.split(line, comments=True) for line in block.splitlines())


def test_commands_that_the_docs_show_are_understood():
    group = typer.main.get_command(app)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    seen = set()
    for words in filter(None, _lines()):
        if words[0].removeprefix(".venv/bin/") == "dicache":
            group.commands[words[1]].make_context(words[1], words[2:])  # parses, and runs nothing
        elif words[0] == "make":
            assert words[1] in targets, words
        seen.add(words[0])
    assert {"dicache", "make", "pip"} <= seen

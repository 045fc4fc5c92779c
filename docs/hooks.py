"""What the site is made of beside the pages in this folder: the package in one tree, as it is installed, for the API;
and a page per setting of the bench, from the tables and plots that lie beside its results.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BESIDE = ("probes", "estimators", "extension")
"""Folders that install inside the package."""
RESULTS = ROOT / "bench" / "results"


def on_startup(command: str, dirty: bool) -> None:
    """Link the package together where mkdocstrings reads it, which looks for the folder before anything else."""
    tree = ROOT / "build" / "docs" / "dicache"
    tree.mkdir(parents=True, exist_ok=True)
    for path in [*(ROOT / "dicache").iterdir(), *(ROOT / name for name in BESIDE)]:
        link = tree / path.name
        if not link.is_symlink():
            link.symlink_to(path)
    for link in tree.iterdir():
        if not link.exists():
            link.unlink()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for table in sorted(RESULTS.glob("*.md")):
        plot = table.with_suffix(".png")
        body = table.read_text(encoding="utf-8").replace("## ", "# ", 1)
        if plot.is_file():
            heading, _, rest = body.partition("\n\n")
            body = f"{heading}\n\n![Median error against speed-up, a line per arm]({plot.name})\n\n{rest}"
            files.append(File.generated(config, f"benchmarks/{plot.name}", abs_src_path=str(plot)))
        elif not body.startswith("# "):
            body = f"# {table.stem.capitalize()} in full\n\n{body}"
        files.append(File.generated(config, f"benchmarks/{table.name}", content=body))
    return files

"""Puts the running average of a checkpoint into the package: `python -m dicache.reference.training.export
build/reference/last.pt`.
"""

import argparse
from pathlib import Path

from dicache.reference.training.train import averaged
from dicache.reference.weights import MODEL, save


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a checkpoint's running average as the shipped weights.")
    parser.add_argument("checkpoint", type=Path)
    save(MODEL, averaged(parser.parse_args().checkpoint).modules())
    print(f"{MODEL.name}: {MODEL.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

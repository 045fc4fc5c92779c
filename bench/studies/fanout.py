"""What handing work to processes gains: a calibration of the reference model by one worker and by several.

    python -m dicache.bench.studies.fanout                       24 prompts, 12 steps; 1 and 2 workers, by turns
    python -m dicache.bench.studies.fanout --prompts 48 --workers 1 2 4

Each worker has one thread, and nothing else should run on the machine: its load before the study is in the result.
Printed are the seconds of each, how many times faster several are than one, and whether their profiles are the same.
The workers' own beginning, and the pipeline that each of them reads, are in the seconds.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dicache
import dicache.reference
from dicache.bench.harness.store import RESULTS
from dicache.files.atomic import write_text
from dicache.files.content import digest_of
from dicache.promise.profile import Profile
from dicache.reference.scenes import prompts

CALL = {"negative_prompt": "", "true_cfg_scale": 3.5}


def digest(profile: Profile) -> str:
    return digest_of([profile.facts, {name: np.asarray(value) for name, value in profile.arrays.items()}])


def calibrated(captions: list[str], steps: int, workers: int) -> tuple[float, str]:
    """Seconds, and the profile's digest."""
    context = multiprocessing.get_context("spawn")
    started = time.monotonic()
    with ProcessPoolExecutor(workers, context) as executor:
        profile = dicache.calibrate(
            dicache.reference.pipeline(), captions, steps=steps, batch=4, call=CALL, progress=False, executor=executor
        )
    return time.monotonic() - started, digest(profile)


def compared(captions: list[str], steps: int, workers: list[int], rounds: int) -> dict[str, Any]:
    seconds: dict[int, list[float]] = {n: [] for n in workers}
    digests, load = set[str](), os.getloadavg()[0]
    for _ in range(rounds):
        for n in workers:
            took, own = calibrated(captions, steps, n)
            seconds[n].append(took)
            digests.add(own)
            print(f"{n} workers: {took:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    best = {n: min(took) for n, took in seconds.items()}
    return {
        "prompts": len(captions),
        "steps": steps,
        "load_before": load,
        "seconds": best,
        "times_faster": {n: best[workers[0]] / took for n, took in best.items()},
        "same_profile": len(digests) == 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One worker and several calibrate the reference model.")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1, help="the least seconds of so many count")
    parser.add_argument("--out", type=Path, default=RESULTS / "fanout.json")
    args = parser.parse_args()
    torch.set_num_threads(1)  # workers take over how many this process has
    captions = list(islice(prompts("calibration", args.prompts), args.prompts))
    facts = compared(captions, args.steps, args.workers, args.rounds)
    print(json.dumps(facts, indent=1))
    write_text(args.out, json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

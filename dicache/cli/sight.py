"""What dicache sees in a pipeline, as plain facts. Costs, memory and the solver as it is played are those of the first
two steps of a run, which is broken off then.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from dicache.api import denoisers, enable
from dicache.cache import Cache
from dicache.cli.load import Ready, refusals_of
from dicache.errors import DicacheError
from dicache.finders.by_name import SITES, sites_named
from dicache.hosts.checks import check_free
from dicache.hosts.pipeline_call import listening, taken_by
from dicache.measuring.recording import Recorder
from dicache.models.family import Family
from dicache.models.find_blocks import family_of, find
from dicache.models.identity import outline
from dicache.promise.choose_profile import may_have_shipped
from dicache.reporting.words import macs, size
from dicache.types import Timetable

BUDGET = 0.05
STEPS_RUN = 2
REMEDY = "Give what the pipeline needs: --prompt TEXT, --height, --width, --argument NAME=VALUE (image=@photo.png)."


class _Enough(Exception):
    """Breaks a run off."""


def seen_in(ready: Ready, prompts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Numbers, strings, lists and mappings only; None where a number is not known."""
    named = {name: _denoiser(module) for name, module in denoisers(ready.pipe).items()}
    refused = [f"{name}: {facts['refused']}" for name, facts in named.items() if facts["refused"]]
    run = {"solver": None, "costs": None, "notes": refused} if refused else _run(ready, prompts, seed)
    return {
        "pipeline": type(ready.pipe).__name__,
        "call": {name: str(value) for name, value in ready.call.items()},
        "steps": ready.steps,
        "parts": list(_parts(ready.pipe)),
        "denoisers": named,
        **run,
    }


def tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    """For people."""
    yield _table(facts["pipeline"], ["part", "class", "parameters", "memory"], _part_rows(facts))
    for name, denoiser in facts["denoisers"].items():
        yield _table(name, ["", denoiser["model"]], _denoiser_rows(denoiser))
    if facts["solver"] is not None:
        yield _table("the solver, as it is played", ["", facts["solver"]["name"]], _solver_rows(facts["solver"]))
    if facts["costs"] is not None:
        yield _table("a step of one sample, uncached", ["part", "work", "share"], _cost_rows(facts["costs"]))


def _parts(pipe: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            tensors = list(part.parameters())
            yield {
                "name": name,
                "class": type(part).__name__,
                "parameters": sum(p.numel() for p in tensors),
                "bytes": sum(p.nbytes for p in tensors),
                "dtype": str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
                "device": str(tensors[0].device) if tensors else "",
            }


def _denoiser(module: nn.Module) -> dict[str, Any]:
    """What is known of it without running it."""
    try:
        family = family_of(module)
        check_free(module)
        blocks = find(module, family).blocks
    except DicacheError as error:
        return {"model": type(module).__name__, "refused": str(error)}
    return {
        "model": type(module).__name__,
        "refused": "",
        "batch": str(family.batch),
        "between": family.between,
        "stacks": {stack: sum(_within(path, stack) for path in blocks) for stack in family.stacks},
        "sites": {word: _sites(word, family, blocks) for word in SITES},
        "profile ships": may_have_shipped(outline(module)),
    }


def _sites(word: str, family: Family, blocks: dict[str, nn.Module]) -> int | str:
    """How many there are, or why there are none."""
    selector = sites_named(word)
    try:
        sites = selector.select(blocks, 0)
        family.check(sites, 0, tuple(blocks))
    except DicacheError as error:
        return str(error).replace(str(selector), f"--sites {word}")
    return len(sites)


def _run(ready: Ready, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """What two steps show."""
    try:
        with enable(ready.pipe, error_budget=BUDGET) as cache:
            _two_steps(ready, prompts, seed)
            recorder, trace = Recorder(cache), cache.trace
            timetable, notes = recorder.facts.timetable, list(dict.fromkeys(cache.session.notes))
            costs = None if trace is None or not trace.records else _costs(ready, cache, recorder.booked_macs)
    except DicacheError as error:
        return {"solver": None, "costs": None, "notes": [f"two steps could not be drawn: {error} {REMEDY}"]}
    solver = None if timetable is None else _solver(timetable)
    if solver is None or not solver["known"]:
        notes.append("the steps of this solver are not known beforehand: what cannot be priced computes.")
    return {"solver": solver, "costs": costs, "notes": notes}


def _two_steps(ready: Ready, prompts: Sequence[str], seed: int) -> None:
    done: list[Tensor] = []

    def after_step(latents: Tensor) -> None:
        done.append(latents)
        if len(done) >= STEPS_RUN:
            raise _Enough

    latent = {"output_type": "latent"} if "output_type" in taken_by(ready.pipe) else {}
    generator = torch.Generator().manual_seed(seed)
    try:
        with refusals_of(ready.pipe), torch.no_grad():
            ready.pipe(
                prompt=list(prompts),
                num_inference_steps=ready.steps,
                generator=generator,
                **{**ready.call, **_listed(ready.call, len(prompts)), **listening(ready.pipe, after_step), **latent},
            )
    except _Enough:
        return


def _listed(call: Mapping[str, Any], samples: int) -> dict[str, Any]:
    negative = call.get("negative_prompt")
    return {"negative_prompt": [negative] * samples} if isinstance(negative, str) else {}


def _solver(timetable: Timetable) -> dict[str, Any]:
    times = timetable.half_log_snrs
    return {
        "name": timetable.solver,
        "steps": len(timetable.sigmas),
        "first": timetable.sigmas[0],
        "last": timetable.sigmas[-1],
        "half_log_snr": [times[0], times[-1]] if times else None,
        "random": timetable.random,
        "known": bool(times) and any(coefficient > 0 for coefficient in timetable.coefficients),
    }


def _costs(ready: Ready, cache: Cache, booked: Mapping[Hashable, float]) -> dict[str, Any]:
    trace = cache.trace
    assert trace is not None
    stacks = [stack for module in denoisers(ready.pipe).values() for stack in family_of(module).stacks]
    parts = dict.fromkeys(dict.fromkeys(stacks), 0.0) | {"around the blocks": 0.0}
    for key, cost in booked.items():
        path = key[0] if isinstance(key, tuple) and isinstance(key[-1], int) else key  # a module's n-th run of a call
        if isinstance(path, str):
            home = next((stack for stack in stacks if _within(path, stack)), "around the blocks")
            parts[home] += cost
    step = float(trace.uncached[0]) / (len(trace.records) if trace.complete else STEPS_RUN)
    call = sum(parts.values())
    return {
        "step": step,
        "call": call,
        "calls": step / call if call else None,
        "branches": sorted({name for record in trace.records for name in record.branches}),
        "parts": parts,
        "beside": {work.name: work.total(len(trace.uncached))[1] / len(trace.uncached) for work in trace.side_work},
        "cache_bytes": trace.planned_bytes,
    }


def _within(path: str, stack: str) -> bool:
    return path == stack or path.startswith(f"{stack}.")


def _table(title: str, columns: Sequence[str], rows: Iterator[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _part_rows(facts: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for part in facts["parts"]:
        where = f"{size(part['bytes'])}, {part['dtype']} on {part['device']}" if part["bytes"] else "none"
        yield part["name"], part["class"], f"{part['parameters']:,}", where


def _denoiser_rows(denoiser: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    if denoiser["refused"]:
        yield "refused", denoiser["refused"]
        return
    yield "blocks", ", ".join(f"{count} in {stack}" for stack, count in denoiser["stacks"].items())
    yield "a batch computes", denoiser["batch"]
    yield from [("between blocks it", denoiser["between"])] if denoiser["between"] else []
    for word, sites in denoiser["sites"].items():
        yield f"--sites {word}", f"{sites} to decide on" if isinstance(sites, int) else sites
    ships = "one may ship with dicache" if denoiser["profile ships"] else "none; `dicache calibrate` measures one"
    yield "profile for a promise", ships


def _solver_rows(solver: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield "steps", f"{solver['steps']}, from {solver['first']:.4g} to {solver['last']:.4g}"
    if solver["half_log_snr"] is not None:
        first, last = solver["half_log_snr"]
        yield "half log of signal over noise", f"from {first:.3g} to {last:.3g}"
    yield "draws new noise", "yes" if solver["random"] else "no"


def _cost_rows(costs: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    rows = costs["calls"] or 1.0
    total = costs["step"] + sum(costs["beside"].values())
    for name, cost in costs["parts"].items():
        yield name, macs(cost * rows), f"{cost * rows / total:.0%}" if total else "-"
    for name, cost in costs["beside"].items():
        yield f"{name}, beside it", macs(cost), f"{cost / total:.0%}"
    calls = len(costs["branches"])
    yield "all of it", f"{macs(total)}, {rows:.3g} rows in {calls} call{'s' * (calls != 1)} of the denoiser", "100%"
    if costs["cache_bytes"] is not None:
        yield f"remembered at error_budget={BUDGET}", size(costs["cache_bytes"]), ""

"""What skipping is priced at, asked once for the rows of many slots, each at a step of its own: their histories,
amplitudes and scales are laid upon each other, and the answer is cut apart. What every slot decides is then its own.

Priced together are those of the same parts, with as much remembered and as much known of their runs, where all parts
are dicache's own and errors are predicted by `Amplitude`; whoever differs is priced alone, as in a run without others.
"""

from collections.abc import Hashable, Sequence

import torch

from dicache.approximators.pricing import growths, per_row, priced, upon_each_other, weights
from dicache.estimators.amplitude import Amplitude, Amplitudes
from dicache.estimators.base import Evidence
from dicache.runtime.decide import evidence_of, guidance_of, standing_of, typical_error
from dicache.runtime.evaluation_site import EvaluationSite, PricedEvidence, target_of
from dicache.runtime.run_state import Call

Asking = tuple[EvaluationSite, Call]


def priced_together(asking: Sequence[Asking]) -> list[PricedEvidence | None]:
    """Of each what is known and what skipping costs; None for those that are to be asked alone."""
    groups = dict[Hashable, list[int]]()
    for i, one in enumerate(asking):
        kind = _kind(*one)
        if kind is not None:
            groups.setdefault(kind, []).append(i)
    answers: list[PricedEvidence | None] = [None] * len(asking)
    for indices in groups.values():
        if len(indices) > 1:
            for i, each in zip(indices, _priced([asking[i] for i in indices]), strict=True):
                answers[i] = each
    return answers


def _kind(strategy: EvaluationSite, call: Call) -> Hashable:
    """What has to be alike; None for who is priced alone."""
    run, state, config = call.run, call.run.states[0], strategy.config
    histories, timetable = state.histories.get(call.branch), run.step.timetable
    decided = run.samples == 0 or run.apart or state.judgement is not None
    if decided or histories is None or type(config.estimator) is not Amplitude or config.judged_by_others:
        return None
    if run.sums.shared or call.feature is not None or (state.depth is not None and state.depth < config.depth):
        return None
    remembered = len(histories.outputs.sigmas), len(histories.outputs.values)
    walks = timetable is not None and timetable.random
    return *map(id, config.approximators), config.estimator, remembered, walks, run.step.half_log_snr is None


def _priced(asking: Sequence[Asking]) -> list[PricedEvidence]:
    config, runs = asking[0][0].config, [call.run for _, call in asking]
    states, samples = [run.states[0] for run in runs], [run.samples for run in runs]
    histories = [state.histories[call.branch] for state, (_, call) in zip(states, asking, strict=True)]
    past_times = [each.outputs.times[:, :n] for each, n in zip(histories, samples, strict=True)]
    times, time = torch.cat(past_times, dim=1), per_row([run.time for run in runs], samples)
    walks = runs[0].step.timetable is not None and runs[0].step.timetable.random
    growth = growths(config.approximators, times, time, random=walks)
    weighed = weights(config.approximators, times, time, torch.cat([guidance_of(run) for run in runs]))
    typical = [typical_error(run.step) for run in runs]
    usual = None if typical[0] is None else per_row([each for each in typical if each is not None], samples)[:, None]
    seen = Evidence(growth, time, time, usual)  # type: ignore[arg-type]  # one number a row; innovations: not read
    amplitudes = Amplitudes(*(torch.cat(each) for each in zip(*(state.estimator for state in states), strict=True)))
    standings = [standing_of(run, state) for run, state in zip(runs, states, strict=True)]
    standing = upon_each_other(standings, samples)
    price = priced(config.actions, standing, growth, weighed, config.estimator.predict(seen, amplitudes))
    answers, begin = list[PricedEvidence](), 0
    for (strategy, call), own_histories, n in zip(asking, histories, samples, strict=True):
        rows = slice(begin, begin := begin + n)
        laws = growth[rows], None if weighed is None else weighed[rows]
        evidence = evidence_of(strategy.config, call.run, strategy.meter, own_histories, target_of(call), laws)
        answers.append((evidence, price.of(rows)))
    return answers

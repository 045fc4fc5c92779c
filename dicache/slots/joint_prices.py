"""What skipping is priced at, asked once for the rows of many slots, each at a step of its own: their histories,
amplitudes and scales are laid upon each other (`dicache.runtime.decide`), and the answer is cut apart.
"""

from collections.abc import Hashable, Sequence

from dicache.runtime import decide
from dicache.runtime.decide import AskedSite
from dicache.runtime.evaluation_site import EvaluationSite, PricedEvidence, target_of
from dicache.runtime.evidence import evidence_of
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
    run, state = call.run, call.run.states[0]
    histories = state.histories.get(call.branch)
    decided = run.samples == 0 or run.apart or state.judgement is not None
    if decided or histories is None or call.feature is not None:
        return None
    return decide.kind_of(strategy.config, AskedSite(run, state, histories))


def _priced(asking: Sequence[Asking]) -> list[PricedEvidence]:
    asked = [AskedSite(call.run, call.run.states[0], call.run.states[0].histories[call.branch]) for _, call in asking]
    (growth, weighed), price = decide.priced_together(asking[0][0].config, asked)
    answers, begin = list[PricedEvidence](), 0
    for (strategy, call), (run, _, histories) in zip(asking, asked, strict=True):
        rows = slice(begin, begin := begin + run.samples)
        laws = growth[rows], None if weighed is None else weighed[rows]
        evidence = evidence_of(strategy.config, run, strategy.meter, histories, target_of(call), laws)
        answers.append((evidence, price.of(rows)))
    return answers

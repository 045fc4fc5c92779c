"""Networks that a pipeline calls in its loop beside the denoiser: ControlNets, a second model for one branch. Their
work is in all numbers, so that a speed-up is not larger than what is saved.

    what runs between two denoiser calls of a run    counts
    what runs before the first of them               counts if it runs again in that run: its last call, and only if
                                                     the scheduler had the run's times by then
    what runs after the last of them                 does not: it follows the loop

All samples share evenly. Encoders and autoencoders, which callbacks may call at every step, are never counted.

One that feeds the denoiser alone does not run for samples that the denoiser is going to skip
(`dicache.hosts.foresight`). It is one where, in the run's first step, it was called with the denoiser's own latent
and time, and all that it gave came to the denoiser as it was. Should a row compute after all, it runs late, and what it
gives is handed to the denoiser in the place of what stood in for it.
"""

import re
import time
from collections.abc import Collection, Mapping
from functools import partial
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dicache.config import Config
from dicache.errors import UnsupportedModelError
from dicache.hosts.attachment import Attachment
from dicache.hosts.denoiser_call import timestep_of
from dicache.hosts.foresight import begin_step, samples_to_compute
from dicache.hosts.holding import Holding
from dicache.hosts.module_hook import Uncopied, eager
from dicache.hosts.running_pipeline import Running
from dicache.hosts.side_network import SideNetwork, hidden
from dicache.models.conditioning import conditions_of
from dicache.models.family import Batch
from dicache.runtime.evaluation_site import EvaluationSite
from dicache.runtime.run_state import Call, Run
from dicache.runtime.session import Session
from dicache.runtime.trace import SideWork
from dicache.tensors.tree import Tree, map_tensors, tensors
from dicache.tensors.written import same
from dicache.types import Rows

_ENCODERS = re.compile("text_encoder|image_encoder|vae|vq")
"""In the names that pipelines give to what is not of the loop."""


class SideNetworks(Uncopied):
    """Those of the pipeline that runs, for the sessions of all its denoisers."""

    running: Running
    attachments: tuple[Attachment, ...]

    def __init__(self, running: Running, attachments: Collection[Attachment]) -> None:
        self.running, self.attachments = running, tuple(attachments)
        self.networks: WeakKeyDictionary[nn.Module, SideNetwork] = WeakKeyDictionary[nn.Module, SideNetwork]()
        self.calls: list[tuple[SideWork, object]] = []
        """Since the denoiser was called last: what ran, and the scheduler's times by then."""
        self.before_run: dict[str, SideWork] = {}
        """What ran before the run's first denoiser call, by name."""
        self.session: Session | None = None
        self.run: Run | None = None
        """Of the denoiser call before."""
        self._look(running.pipe)
        for attachment in attachments:
            attachment.session.on_call = self._before_denoiser
            attachment.session.on_over.append(self._let_go)
            feeds = partial(self._feeds, attachment)
            attachment.handles.append(attachment.denoiser.register_forward_pre_hook(feeds, with_kwargs=True))
            attachment.handles.append(self)

    # Before a network runs, and after.

    def _begins(self, network: SideNetwork) -> Rows | None:
        """A network is about to run: what the next call of a denoiser is says whether that counts. For which samples,
        (B,) bool; None for all.
        """
        for attachment in self.attachments:
            attachment.session.expected = True
            before = attachment.session.run
            network.looked &= before is not None and not (before.complete or before.at_last_step)  # else one may begin
        attachment, call = self.attachments[0], network.call
        assert call is not None
        moment = timestep_of(attachment.family, call.named)
        if moment is None:  # a checker of pictures, a projector: nothing of the step, and what it got is not kept
            network.let_go()
            return None
        latent, session = call.named.get(network.latent), attachment.session
        if not isinstance(latent, Tensor) or len(self.attachments) > 1 or session.run is not self.run:
            return None
        started = time.perf_counter()
        run = begin_step(session, latent, moment, network.part, conditions_of(attachment.family, call.named, latent))
        network.holding = None if run is None else _holding(network.holding, session.config, run)
        if run is None:
            return None
        computed = self._computed(network, attachment, run)
        run.overhead += time.perf_counter() - started
        return computed

    def _computed(self, network: SideNetwork, attachment: Attachment, run: Run) -> Rows | None:
        """The samples, (B,) bool, that the denoiser computes and no rule has held; None for all."""
        computed = samples_to_compute(attachment.session, run)
        if network.holding is not None:
            runs = network.holding.runs()
            computed = runs if computed is None else computed & runs
        coupled = attachment.family.batch is not Batch.SAMPLE
        return None if coupled and computed is not None and bool(computed.any()) else computed

    def _ran(self, network: SideNetwork, macs: float) -> None:
        if network.again:
            self._book(SideWork(network.name, macs))
            return
        scheduler = _attributes(self.running.pipeline).get("scheduler")
        executed = macs if network.computed is None else macs * network.computed.double()
        self.calls.append((SideWork(network.name, executed, macs), _attributes(scheduler).get("timesteps")))
        if self.run is not None:
            self.run.conditions.unseen = {id(t) for each in self.networks.values() for t in each.stand_ins}

    # Before a denoiser runs: what is booked, learned and handed on.

    def _before_denoiser(self, session: Session) -> None:
        """The session has seen the call already."""
        for listening in self.networks.values():
            listening.stop()
        calls, run = list(self.calls), session.run
        self.calls.clear()
        if run is None:
            return
        goes_on, self.session, self.run = self._goes_on(session), session, run
        if goes_on:
            for work, _ in calls:
                before = self.before_run.pop(work.name, SideWork(work.name))
                run.side_work[work.name] = run.side_work.get(work.name, before).plus(*work[1:])
        else:
            self.before_run = {
                work.name: SideWork(work.name, float(torch.as_tensor(work.executed).mean()), work.uncached)
                for work, times in calls
                if times is None or times is run.key
            }
            self._look(self.running.pipeline)
            for network in self.networks.values():
                if hidden(network.module):
                    session.note(
                        f"{network.name}, beside the denoiser, is compiled in a way that hides what it executes, which "
                        "is in no number here. Compile it with torch.compile(network), or its blocks in place."
                    )

    def _book(self, work: SideWork) -> None:
        """Of a network that ran for the call that has begun."""
        books = self.before_run if work.name in self.before_run or self.run is None else self.run.side_work
        books[work.name] = books.get(work.name, SideWork(work.name)).plus(*work[1:])

    @eager
    def _feeds(
        self, attachment: Attachment, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree]
    ) -> tuple[tuple[Tree, ...], dict[str, Tree]] | None:
        """What the denoiser is called with, in the place of what only stands in for it."""
        call = attachment.session.call
        late = dict[int, Tensor]()
        for network in tuple(self.networks.values()):
            if network.handed is not None and call is not None:
                network.looked, network.latent = True, _latent_of(network, call, attachment, args, kwargs)
                network.holding = _holding(None, attachment.session.config, call.run) if network.latent else None
                if network.holding is not None:
                    network.holding.remember(network.handed.parts, None)
                network.let_go()
            if network.stand_ins and (network.late or _reads(network, call, attachment.session)):
                late |= network.run_late()
        if not late:
            return None
        exchanged = list[int]()

        def exact(t: Tensor) -> Tensor:
            exchanged.extend([id(t)] * (id(t) in late))
            return late.get(id(t), t)

        args, kwargs = map_tensors(exact, args), map_tensors(exact, kwargs)
        if len(set(exchanged)) < len(late):
            raise UnsupportedModelError(
                "a network beside the denoiser did not run because nothing was to be read of it, and the pipeline has "
                "changed what it gave before the denoiser was called, which computes after all. Expected it to be "
                "handed on as in the steps before: call the pipeline without that, or dicache.disable it for this run."
            )
        return args, kwargs

    def _goes_on(self, session: Session) -> bool:
        """Whether it is the loop of the call before; experts take turns in one."""
        before = self.session
        return session.run is self.run or (
            before is not None and before is not session and session.shares_its_run_with(before)
        )

    def _look(self, pipe: object) -> None:
        """Pipelines share a denoiser, and their networks are exchanged: looked for at the beginning of every run."""
        denoisers = {*self.running.denoisers.values()}
        parts = {name: part for name, part in _attributes(pipe).items() if isinstance(part, nn.Module)}
        networks = {part: name for name, part in parts.items() if part not in denoisers and not _ENCODERS.search(name)}
        if not all(network in self.networks for network in networks):
            owners = (*denoisers, *networks)
            inside = {m for owner in owners for m in owner.modules() if m is not owner}
            for network, name in networks.items():
                if network not in self.networks and network not in inside:
                    self.networks[network] = SideNetwork(network, name, self._begins, self._ran)

    def _let_go(self) -> None:
        """A run is over: nobody asks for what networks were called with any more."""
        for network in self.networks.values():
            network.let_go()

    def remove(self) -> None:
        for network in self.networks.values():
            network.remove()
        self.networks.clear()
        for attachment in self.attachments:
            attachment.session.on_call = bool
            if self._let_go in attachment.session.on_over:  # one is told by every attachment
                attachment.session.on_over.remove(self._let_go)


def _holding(before: Holding | None, config: Config, run: Run) -> Holding | None:
    """What the run has held of it; None where no rule has it held."""
    rule = config.control_rule
    if rule is None or (before is not None and before.run is run):
        return before
    return Holding(rule, config.control_fill, run)


def _latent_of(
    network: SideNetwork, call: Call, attachment: Attachment, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]
) -> str:
    """The name of the argument that is the denoiser's own latent, where the network feeds this denoiser alone: all that
    it gave comes to it, unwritten, and it was called with the same time. Empty where it does not.
    """
    own, handed = network.call, network.handed
    assert own is not None and handed is not None
    arriving = {id(t) for t in tensors((args, kwargs))}
    if not handed.parts or handed.unwritten.changed or not all(id(t) in arriving for t in handed.parts):
        return ""
    bound = signature(type(attachment.denoiser).forward).bind_partial(attachment.denoiser, *args, **kwargs).arguments
    times = [timestep_of(attachment.family, named) for named in (own.named, bound)]
    if any(time is None for time in times) or len({_number(time) for time in times}) > 1:
        return ""
    alike = (t for t in own.named.items() if isinstance(t[1], Tensor) and t[1].shape == call.latent.shape)
    return next((name for name, t in alike if t is call.latent or same(t, call.latent)), "")


def _number(time: Any) -> float:  # noqa: ANN401
    return float(time.flatten()[0] if isinstance(time, Tensor) else time)


def _reads(network: SideNetwork, call: Call | None, session: Session) -> bool:
    """Whether rows compute in this call for which the network neither ran nor is held."""
    if call is None or network.computed is None:
        return True
    missing = ~network.computed
    if network.holding is not None and network.holding.run is call.run:
        missing = missing & network.holding.due
    if not bool(missing.any()):
        return False
    rows = session.strategy.coming(call) if type(session.strategy) is EvaluationSite else None
    if rows is None or (bool(rows.any()) and not call.rows_to_run.gathered):
        return True
    return bool((rows.view(-1, call.run.samples).any(0) & missing).any())


def _attributes(holder: object) -> dict[str, Any]:
    try:
        return vars(holder)
    except TypeError:  # None, or it has slots
        return {}

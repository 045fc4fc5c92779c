"""The whole evaluation as one site, of which some tokens run where it is skipped.

block    the site is decided as ever; then, once per step, which tokens of each sample run that skips
run      rows that compute run whole, and keys and values of every attention are noted down; of rows that skip the
         chosen tokens run against those, which are fresh at their places from then on
end      the tokens that ran keep what they gave, the others get the approximator's guess, and all of it is shown to
         the choice

Only whole evaluations enter the history. Where all tokens of a sample are to run, it computes.
"""

from collections.abc import Hashable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.approximators.noise import predicted
from dicache.config import Config
from dicache.errors import UnsupportedModelError
from dicache.models.family import Family
from dicache.runtime.evaluation_site import Deciding, EvaluationSite
from dicache.runtime.memory_plan import MemoryPlan
from dicache.runtime.module_call import ModuleCall
from dicache.runtime.run_state import Call
from dicache.sites import Tokens
from dicache.tensors.mac_meter import Meter
from dicache.tensors.token_grid import as_picture, as_tokens
from dicache.tensors.tree import Tree, map_tensors
from dicache.tokens.attention import KeysValues, NotedAttention, StoredAttention
from dicache.tokens.fit import Fit, fit_of
from dicache.tokens.gather import Subset, argument, gathered, scattered
from dicache.tokens.memory import TokenMemory, padded, seeds_of, weights_of
from dicache.types import Rows

Key = tuple[tuple[Hashable, ...], str]
"""A call's key and a path."""


class RunningTokens(NamedTuple):
    """What runs of the rows of a call that skip."""

    subset: Subset
    rows: Rows
    """Those of which some tokens run, (R,) bool on the host."""
    mask: Tensor
    """The tokens, (R, N) bool."""


class TokenSite(EvaluationSite):
    rule: Tokens
    family: Family
    own_bytes: int
    stream_bytes: int

    def __init__(self, family: Family, config: Config, meter: Meter, memory: MemoryPlan) -> None:
        super().__init__(config, meter, memory)
        assert isinstance(config.sites, Tokens)
        self.rule, self.family, self.own_bytes = config.sites, family, memory.fixed
        self.fits: dict[Key, Fit] = {}
        """How each block takes some of its tokens, by the call's key and the block's path."""
        self.stream_bytes = 0
        """Of the picture's stream between two blocks."""

    def forget(self) -> None:
        super().forget()
        self.memory.fixed = self.own_bytes

    # One block.

    def block(self, call: Call, module_call: ModuleCall, deciding: Deciding | None = None) -> Tree:
        if call.position != self.depth:
            return super().block(call, module_call)
        memory, run = self._remembered(call), call.run
        memory.begin_step(run)
        entering = argument(module_call, self.family.streams[0]) if call.first and self.rule.by.reads_entering else None
        entering = None if entering is None else entering.detach()[: run.samples or None].clone()
        output = super().block(call, module_call, partial(self._decide, module_call, entering))
        if entering is not None:
            memory.entering = entering
        return output

    def _remembered(self, call: Call) -> TokenMemory:
        state = call.run.states[0]
        if state.tokens is None:
            state.tokens = TokenMemory(seeds_of(call.latent))
        memory: TokenMemory = state.tokens
        return memory

    def _decide(self, module_call: ModuleCall, entering: Tensor | None, call: Call) -> Rows | None:
        """Which rows compute, (R,) bool, None for all; and which tokens run of the others."""
        computed, run, memory = self.decide(call), call.run, self._remembered(call)
        if computed is None:
            return None
        if memory.mask is None:
            n_tokens = self.fits[call.key, module_call.path].sizes.picture
            memory.mask, memory.state = self.rule.by.choose(memory.seen(run, n_tokens, entering), memory.state)
        chunks = len(computed) // run.samples
        computed = computed | memory.mask.all(1).cpu().repeat(chunks)
        if call.first:
            memory.computing = computed[: run.samples]
        rows = ~computed & memory.mask.any(1).cpu().repeat(chunks)
        if bool(rows.any()):
            call.tokens = self._running(module_call, memory.mask.repeat(chunks, 1), rows)
        return computed

    def _running(self, module_call: ModuleCall, mask: Tensor, rows: Rows) -> RunningTokens:
        on_device = rows.to(mask.device)
        picture = padded(mask[on_device])
        text = [argument(module_call, name) for name in self.family.streams[1:]]
        lengths = [self.rule.text_tokens(t.shape[1]) for t in text if t is not None]
        index = None if bool(rows.all()) else on_device.nonzero().flatten()
        return RunningTokens(Subset(index, picture, max(lengths, default=0)), rows, mask & on_device[:, None])

    def run(self, call: Call, module_call: ModuleCall) -> Tree:
        if call.position <= self.depth:  # the probe's
            return super().run(call, module_call)
        path, key = module_call.path, (call.key, module_call.path)
        with NotedAttention() as recorded:
            output = super().run(call, module_call)
        if key not in self.fits:  # a call of a new key runs whole
            self.fits[key] = self._fit(call, module_call, output, recorded.pairs)
        fit = self.fits[key]
        if call.first:
            self.stream_bytes = fit.picture_of(output).nbytes
        self._store(call, path, fit, recorded.pairs)
        if call.tokens is not None:
            output = self._run_tokens(call, module_call, fit, call.tokens, output)
        if call.first and path == call.run.states[0].site.modules[-1] and self.rule.by.reads_leaving:
            self._leave(call, fit, output)
        return output

    def _fit(self, call: Call, module_call: ModuleCall, output: Tree, pairs: list[KeysValues]) -> Fit:
        """Trying it out is work that would not have been done uncached."""
        part, rows = ("the fit", module_call.path), call.rows_to_run.rows
        make = partial(fit_of, self.family, self.rule, module_call, rows, output, pairs)
        fit = self.meter.counted(part, make)
        self.meter.ran_beside(part, torch.ones(rows, dtype=torch.bool))
        return fit

    def _store(self, call: Call, path: str, fit: Fit, pairs: list[KeysValues]) -> None:
        """Keys and values of the rows that computed."""
        state, some = call.run.states[0], call.rows_to_run.some
        if not pairs or state.depth == 0:
            return
        fresh = [pair if fit.sizes.holds(pair.keys.shape[2]) else None for pair in pairs]
        self._remembered(call).store(call.branch, path, fresh, some, self.rule.line)

    def _run_tokens(self, call: Call, module_call: ModuleCall, fit: Fit, running: RunningTokens, output: Tree) -> Tree:
        """`output` of the rows that computed, and of the others at the tokens that run."""
        subset, rows, path = running.subset, call.rows_to_run.rows, module_call.path
        pairs = self._remembered(call).stored_at(call.branch, path, call.run.step.sigma)
        if pairs is None:
            raise UnsupportedModelError(
                f"{path} of {self.family.model} runs at a skipped step and has not at a computed one, so no keys and "
                "values of its tokens are stored. Use sites=Evaluation()."
            )
        inputs = gathered(module_call, self.family.streams, rows, subset, fit.sizes)

        def forward() -> Tree:
            with StoredAttention(pairs, partial(subset.positions, fit.sizes), subset.rows, inputs.tables):
                return module_call.forward(*inputs.args, **inputs.kwargs)

        part = ("tokens", path, subset.picture.shape[1], subset.text)
        parts = self.meter.counted(part, forward, len(subset.picture))
        self.meter.ran_beside(part, running.rows)
        if call.rows_to_run.none:  # what stands in for its output may be an input of the block
            shapes = self.shapes[call.key, path]
            output = map_tensors(lambda t: torch.zeros_like(t, device=call.latent.device), shapes)
        return scattered(output, parts, subset, fit.kinds)

    def _leave(self, call: Call, fit: Fit, output: Tree) -> None:
        """What the last block gave, of samples that computed."""
        memory, samples = self._remembered(call), call.run.samples or None
        leaving = fit.picture_of(output).detach()[:samples]
        if memory.computing is None or memory.leaving is None:
            memory.leaving = leaving.clone()
        else:
            computing = memory.computing.to(leaving.device)
            memory.leaving = torch.where(computing[:, None, None], leaving, memory.leaving[:samples])

    # Filling in.

    def end(self, call: Call, output: Tensor, base: Tensor | None = None, fresh: Rows | None = None) -> Tensor:
        result, memory, computed = super().end(call, output), self._remembered(call), call.rows_to_run.computed
        n_tokens = self.fits[call.key, call.run.states[0].site.modules[-1]].sizes.picture
        if as_tokens(output, n_tokens) is None:
            raise UnsupportedModelError(
                f"{self.family.model} gives {tuple(output.shape)} for {n_tokens} tokens, which are no square patches "
                "of it. Use sites=Evaluation()."
            )
        memory.stored_all(call.branch, call.run.step.sigma, computed, len(output))
        if computed is None:
            memory.shifts.pop(call.branch, None)
        elif call.tokens is not None or call.branch in memory.shifts:
            result = self._refined(call, memory, output, result, ~computed)
            call.run.guided.handed(call.branch, predicted(result, call.latent))
        self._learn(call, memory, n_tokens)
        if self.memory.planned is None:
            self.memory.fixed = (
                self.own_bytes + memory.pair_bytes * (1 + self.rule.line) + self._later_bytes(call, output)
            )
        return result

    def _later_bytes(self, call: Call, output: Tensor) -> int:
        """Of what is remembered beside keys and values from the run's second step on, at most."""
        reads = self.rule.by.reads_entering + self.rule.by.reads_leaving
        return self.rule.lasting * output.nbytes * len(call.run.guided.outputs) + reads * self.stream_bytes

    def _refined(self, call: Call, memory: TokenMemory, output: Tensor, guessed: Tensor, skipped: Rows) -> Tensor:
        """What the branch gives, (R, ...): `guessed`, in rows that skipped with what the tokens that ran gave, and what
        the others make of it.
        """
        assert memory.mask is not None
        n_tokens, rows = memory.mask.shape[1], skipped.to(output.device)[:, None]
        running = call.tokens
        mask = torch.zeros_like(rows).expand(-1, n_tokens) if running is None else running.mask
        ran, plain = as_tokens(output, n_tokens), as_tokens(guessed, n_tokens)
        assert ran is not None and plain is not None
        shift = memory.shifts.get(call.branch)
        guess = plain if shift is None else plain + shift * rows[..., None]
        tokens = torch.where(mask[..., None], ran, guess)
        if running is not None:
            tokens = torch.where(rows[..., None], self.rule.by.spread(tokens, guess, mask, memory.state), tokens)
            missed = torch.where(mask[..., None], ran - guess, 0.0)
            memory.miss(missed * weights_of(call.run, call.branch, len(output)).to(missed)[:, None, None], mask)
        if self.rule.lasting:
            memory.shifts[call.branch] = torch.where(rows[..., None], tokens - plain, 0.0)
        return as_picture(tokens, guessed.shape)

    def _learn(self, call: Call, memory: TokenMemory, n_tokens: int) -> None:
        """What the guesses of samples that computed were off by, once all their branches came."""
        guided, judgement = call.run.guided, call.run.states[0].judgement
        if not guided.complete or not guided.guesses or judgement is None or memory.errors is None:
            return
        assert guided.truth is not None
        computed = judgement.computed if memory.computing is None else memory.computing
        if not bool(computed.any()):
            return
        guesses, best = guided.guesses, judgement.best.to(guided.truth.device)
        first = next(iter(guesses))
        guess = guesses[first]
        for i in guesses:
            own = (best == i).view(-1, *[1] * (guess.ndim - 1))
            guess = torch.where(own, guesses[i], guess)
        missed = as_tokens(guided.truth - guess, n_tokens)
        if missed is not None:
            memory.learn(missed, computed.to(missed.device)[:, None])

"""What the published methods that skip blocks, sublayers or guidance branches do, from their papers' equations, over a
toy denoiser of four blocks.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dicache import presets
from dicache.config import Config
from dicache.sites import Sublayers
from dicache.solvers.timeline import Reading
from helpers.published import differences
from helpers.toy import SIGMAS, N, step

B, SIDE, WIDTH, DEPTH, GUIDANCE = 3, 5, 4, 4, 4.0
TOKENS = SIDE * SIDE
PARTS = ("attn1", "attn2", "ff")


# A toy of four blocks with three sublayers each, (R, N, C) in and out.


class Sublayer(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) / 2)
        self.drift = nn.Parameter(torch.randn(TOKENS, WIDTH, generator=generator))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.tanh((x + x.mean(1, keepdim=True)) @ self.weight + time * self.drift)


class Block(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        for k, name in enumerate(PARTS):
            self.add_module(name, Sublayer(10 * seed + k))

    def forward(self, hidden_states: Tensor, time: Tensor) -> Tensor:
        for name in PARTS:
            hidden_states = hidden_states + getattr(self, name)(hidden_states, time)
        return hidden_states


class Toy(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(100 * seed + k) for k in range(DEPTH))

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        x = hidden_states + text
        for block in self.blocks:
            x = block(x, timestep)
        return x


class Clock:
    run, reason = object(), ""

    def read(self, timestep: Tensor | float | None) -> Reading:
        return Reading(self.run, step(SIGMAS.index(float(timestep))), 1 / N)


def drawn(velocity: Callable[[int, Tensor, list[Tensor]], Tensor], seed: int, rows: slice) -> list[Tensor]:
    """Euler steps from sigma 1 to 0; the latents along the way."""
    generator = torch.Generator().manual_seed(seed)
    pace = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)[:, None, None]  # samples of different difficulty
    x, *texts = (pace * torch.randn(B, TOKENS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3))
    x, texts, way = x[rows], [text[rows] for text in texts], []
    for i in range(N):
        x = x - velocity(i, x, texts) / N
        way.append(x)
    return way


def guided(cond: Tensor, uncond: Tensor) -> Tensor:
    return uncond + GUIDANCE * (cond - uncond)


# The references: one sample, from the equations of the papers, in step counts. `done` lists the computed steps of a
# site, newest first.


class Reference:
    """Every site of its own: `rule(i, site, sites, done)` computes, `guess(i, values, done)` fills in."""

    def __init__(self, toy: Toy, rule: Callable[..., bool], guess: Callable[..., Tensor]) -> None:
        self.toy, self.rule, self.guess = toy, rule, guess
        self.values: list[dict[int, Tensor]] = []
        self.strips: list[list[bool]] = []

    def site(self, i: int, state: int, compute: Callable[[], Tensor]) -> Tensor:
        while len(self.values) <= state:
            self.values.append({})
        newest = self.values[state]
        done = sorted(newest, reverse=True)
        computed = self.rule(i, state, self.sites, done)
        self.strips[i].append(computed)
        if computed:
            newest[i] = compute()
            return newest[i]
        return self.guess(i, newest, done)

    def __call__(self, i: int, x: Tensor, texts: list[Tensor]) -> Tensor:
        self.strips.append([])
        return self.run(i, x + texts[0], torch.tensor(SIGMAS[i], dtype=torch.float64))


class OfSublayers(Reference):
    kinds = PARTS

    @property
    def sites(self):
        return [name for _ in range(DEPTH) for name in self.kinds]

    def run(self, i, x, time):
        states = iter(range(99))
        for block in self.toy.blocks:
            for name in PARTS:
                part, entering = getattr(block, name), x
                if name in self.kinds:
                    x = x + self.site(i, next(states), lambda part=part, entering=entering: part(entering, time))
                else:
                    x = x + part(x, time)
        return x


class OfAttentions(OfSublayers):
    kinds = PARTS[:2]


class OfFirstAttention(OfSublayers):
    kinds = PARTS[:1]


class OfBlocks(Reference):
    """What the blocks add is held."""

    sites = range(DEPTH)

    def run(self, i, x, time):
        for state, block in enumerate(self.toy.blocks):
            x = x + self.site(i, state, lambda block=block, x=x: block(x, time) - x)
        return x


class OfOutputs(Reference):
    """What the blocks give is held, all are decided together, and step 0 is not looked at."""

    sites = range(DEPTH)
    trigger: float = math.inf
    done: tuple[int, ...] = ()

    def run(self, i, x, time):
        computed = self.computes(i)
        self.strips[i] = [computed] * DEPTH
        self.values.append({})
        for state, block in enumerate(self.toy.blocks):
            x = block(x, time) if computed else self.values[max(self.done)][state]
            self.values[i][state] = x
        self.done = (i, *self.done) if computed else self.done
        return x

    def computes(self, i):
        if len(self.done) < 3:
            return True
        target, then = (self.values[a] for a in self.done[:2])
        change = np.mean([float((target[k] - then[k]).abs().sum() / then[k].abs().sum()) for k in range(DEPTH)])
        if change < 0.15:
            self.trigger = min(self.trigger, i)
        stop = self.trigger + 0.5 * (N - self.trigger)
        return not (change < 0.15 and i - self.done[0] <= round(0.1 * N) and i < stop)


class OfDrafts(Reference):
    """TaylorSeer drafts all blocks but the last, which verifies."""

    def run(self, i, x, time):
        *front, last = self.toy.blocks
        done = sorted(self.values[0], reverse=True) if self.values else []
        self.values = self.values or [{}, {}]
        draft = i >= 4 and i - done[0] < 9
        if draft:
            y = x + taylor(i, self.values[0], done)
            added, expected = last(y, time) - y, taylor(i, self.values[1], done)
            error = float((added - expected).norm() / added.norm())
            if error <= max(0.3 * 0.05 ** ((i + 1) / N), 0.1):
                self.strips[i] = [False]
                return y + added
        y = x
        for block in front:
            y = block(y, time)
        result = last(y, time)
        self.values[0][i], self.values[1][i], self.strips[i] = y - x, result - y, [True]
        return result


class OfForecasts(Reference):
    """RACER: whole evaluations by a ridge fit of Chebyshev polynomials, held against a line."""

    owed = 0

    def run(self, i, x, time):
        self.values = self.values or [{}]
        values, done = self.values[0], sorted(self.values[0], reverse=True)
        computed, guess = True, None
        if len(done) >= 5:
            base, line = (
                chebyshev_fit(i, values, done[:10]),
                values[done[0]] + (i - done[0]) / (done[0] - done[1]) * (values[done[0]] - values[done[1]]),
            )
            risky, due = float((base - line).norm() / base.norm()) >= RISK, (i - 4) % 5 == 0
            computed = risky or (due and self.owed == 0)
            self.owed += (risky and not due) - (due and not computed)
            guess = values[done[0]] + 0.9 * (base - values[done[0]])
        self.strips[i] = [computed]
        if not computed:
            return guess
        for block in self.toy.blocks:
            x = block(x, time)
        values[i] = x
        return x


RISK = 0.3


def chebyshev_fit(i, values, done):
    low, high = min(SIGMAS), max(SIGMAS)
    basis = np.polynomial.chebyshev.chebvander([2 * (SIGMAS[k] - low) / (high - low) - 1 for k in [i, *done]], 4)
    exact = np.stack([values[k].numpy().ravel() for k in done])
    fitted = np.linalg.solve(basis[1:].T @ basis[1:] + 0.1 * np.eye(5), basis[1:].T @ exact)
    return torch.tensor((basis[0] @ fitted).reshape(values[done[0]].shape))


class OfBranches(Reference):
    """The unconditional branch by its difference to the conditional one."""

    sites = ("uncond",)

    def __call__(self, i, x, texts):
        self.strips.append([])
        time = torch.tensor(SIGMAS[i], dtype=torch.float64)
        cond = self.toy(x, time, texts[0])
        return guided(cond, cond + self.site(i, 0, lambda: self.toy(x, time, texts[1]) - cond))


def taylor(i, values, done):
    terms = differences(values, done, 2)
    return sum(d * (i - done[0]) ** j / math.factorial(j) for j, d in enumerate(terms))


def hold(i, values, done):
    return values[done[0]]


def gained(weight, begin=0.0, end=1.0):
    return lambda i, values, done: (
        values[done[0]] + weight * (begin <= i / N < end) * (values[done[0]] - values[done[1]])
    )


def bands(i, values, done):
    difference = values[done[0]].numpy().reshape(1, SIDE, SIDE, WIDTH)
    spectrum = np.fft.fftshift(np.fft.fft2(difference, axes=(1, 2)), axes=(1, 2))
    row, column = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    inside = (row**2 + column**2 <= (SIDE // 5) ** 2)[None, :, :, None]
    low = 1.1 if i / N <= 0.8 else 1.0
    high = 1.1 if i / N >= 0.6 else 1.0
    mixed = np.fft.ifftshift(np.where(inside, low, high) * spectrum, axes=(1, 2))
    return torch.tensor(np.fft.ifft2(mixed, axes=(1, 2)).real.reshape(1, TOKENS, WIDTH))


def counted(interval, first):
    return lambda i, state, sites, done: i < first or i - done[0] >= interval


def pyramid(i, state, sites, done):
    longest = {"attn1": 2, "attn2": 6}[sites[state]]
    return not 0.1 < SIGMAS[i] <= 0.85 or i - done[0] >= longest


def staged(i, state, sites, done):
    rear, front = state >= DEPTH - 3, state < 3
    allowed = rear if SIGMAS[i] > 0.5 else front
    return i < 2 or not allowed or i - done[0] >= 2


def windowed(i, state, sites, done):
    return i < 3 or SIGMAS[i] > 0.781 or i - done[0] >= 5


INNER: dict[str, tuple[Config, Callable[[Toy], Reference]]] = {
    "racer": (presets.racer(RISK, kappa=0.9), lambda toy: OfForecasts(toy, counted(5, 5), hold)),
    "fora sublayers": (presets.fora(sites=Sublayers()), lambda toy: OfSublayers(toy, counted(3, 2), hold)),
    "taylorseer sublayers": (
        presets.taylorseer(sites=Sublayers()),
        lambda toy: OfSublayers(toy, counted(6, 4), taylor),
    ),
    "speca": (presets.speca(), lambda toy: OfDrafts(toy, counted(9, 4), taylor)),
    "bwcache": (presets.bwcache(), lambda toy: OfOutputs(toy, counted(1, 0), hold)),
    "gradient_optimized_cache": (
        presets.gradient_optimized_cache(),
        lambda toy: OfSublayers(toy, counted(2, 3), gained(1.2, 0.15, 0.5)),
    ),
    "delta_dit": (presets.delta_dit(), lambda toy: OfBlocks(toy, staged, hold)),
    "pab": (presets.pab(), lambda toy: OfAttentions(toy, pyramid, hold)),
    "fastercache": (presets.fastercache(), lambda toy: OfBranches(toy, windowed, bands)),
    "fastercache_attention": (
        presets.fastercache_attention(),
        lambda toy: OfFirstAttention(toy, counted(3, math.ceil(0.36 * N)), gained(0.3)),
    ),
}

"""The nodes for ComfyUI, held against a stand-in of what it does with a MODEL: it clones it, batches the conditions,
calls the wrapper of its options, and samples.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache.integrations import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

STEPS, SCALE = 20, 4.0


class Eps:
    """As ComfyUI's sampling of models that predict noise."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        noise *= sigma.view(-1, 1, 1, 1)
        noise += latent
        return noise

    def denoised(self, x: Tensor, sigma: Tensor, network: nn.Module, context: Tensor) -> Tensor:
        at = sigma.view(-1, 1, 1, 1)
        return x - at * network(x / (at**2 + 1).sqrt(), sigma.log(), context)

    def sigmas(self) -> Tensor:
        return torch.cat([torch.linspace(math.log(14.6), math.log(0.03), STEPS).exp(), torch.zeros(1)])


class Flow:
    """The same of those that predict a velocity."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        at = sigma.view(-1, 1, 1, 1)
        return at * noise + (1.0 - at) * latent

    def denoised(self, x: Tensor, sigma: Tensor, network: nn.Module, context: Tensor) -> Tensor:
        return x - sigma.view(-1, 1, 1, 1) * network(x, sigma, context)

    def sigmas(self) -> Tensor:
        return torch.linspace(1.0, 0.0, STEPS + 1)


class Network(nn.Module):
    """Noise, or a velocity, of pictures that are nearly one colour: smooth in time, as trained networks are."""

    def __init__(self, flow: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flow, self.mix, self.calls = flow, nn.Conv2d(4, 4, 1), 0
        nn.init.normal_(self.mix.weight, std=0.2)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        self.calls += 1
        at = time.view(-1, 1, 1, 1)
        mean = context.mean((1, 2)).view(-1, 1, 1, 1) + 0.1 * self.mix(x).tanh()
        if self.flow:
            return (x - mean) / at.clamp(min=0.02)
        sigma = at.exp()
        latent = x * (sigma**2 + 1).sqrt()
        return sigma * (latent - mean) / (sigma**2 + 0.02)


class Patcher:
    """As ComfyUI's ModelPatcher, so far as nodes see it."""

    def __init__(self, sampling: Any, network: Network, options: dict[str, Any] | None = None) -> None:
        self.sampling, self.network, self.model_options = sampling, network, dict(options or {})

    def clone(self) -> "Patcher":
        return Patcher(self.sampling, self.network, self.model_options)

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return self.sampling

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.model_options["model_function_wrapper"] = wrapper

    def apply_model(self, x: Tensor, t: Tensor, *, c_crossattn: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        return self.sampling.denoised(x, t, self.network, c_crossattn)


@torch.no_grad()
def sample(patcher: Patcher, seed: int = 0, batch: int = 1, sampler: str = "euler", apart: bool = False) -> Tensor:
    """A sampler of k-diffusion with guidance; `apart`: the conditions do not fit into one batch."""
    sigmas, noise = patcher.sampling.sigmas(), torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, 4, 8, 8, generator=noise)
    x = patcher.sampling.noise_scaling(sigmas[:1], latent.clone(), torch.zeros_like(latent))
    contexts = {0: torch.full((batch, 3, 5), 0.7), 1: torch.zeros(batch, 3, 5)}

    def called(x: Tensor, sigma: Tensor, which: list[int]) -> tuple[Tensor, ...]:
        given = {
            "c_crossattn": torch.cat([contexts[i] for i in which]),
            "transformer_options": {"cond_or_uncond": which, "uuids": which, "sample_sigmas": sigmas, "sigmas": sigma},
        }
        inputs, times = torch.cat([x] * len(which)), torch.cat([sigma.expand(batch)] * len(which))
        wrapper = patcher.model_options.get("model_function_wrapper")
        if wrapper is None:
            return patcher.apply_model(inputs, times, **given).chunk(len(which))
        arguments = {"input": inputs, "timestep": times, "c": given, "cond_or_uncond": which}
        return wrapper(patcher.apply_model, arguments).chunk(len(which))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        pairs = (called(x, sigma, [1])[0], called(x, sigma, [0])[0]) if apart else called(x, sigma, [1, 0])
        return pairs[0] + SCALE * (pairs[1] - pairs[0])

    for now, following in pairwise(sigmas):
        slope = (x - denoise(x, now.view(1))) / now
        ahead = x + (following - now) * slope
        if sampler == "heun" and following > 0:
            slope = (slope + (ahead - denoise(ahead, following.view(1))) / following) / 2
            ahead = x + (following - now) * slope
        x = ahead
    return x


def made(kind: type, budget: float = 0.05, speedup: float = 0.0, options: Any = None) -> tuple[Patcher, Patcher, Any]:
    patcher = Patcher(kind(), Network(kind is Flow), options)
    patched, cache = NODE_CLASS_MAPPINGS["Dicache"]().cached(patcher, budget, speedup)
    return patcher, patched, cache


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_nodes_are_what_comfyui_asks_of_them():
    for name, node in NODE_CLASS_MAPPINGS.items():
        assert name in NODE_DISPLAY_NAME_MAPPINGS and callable(getattr(node(), node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and node.CATEGORY
        for options in node.INPUT_TYPES()["required"].values():
            assert isinstance(options[0], str)


@pytest.mark.parametrize("kind", [Eps, Flow])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("apart", [False, True])
def test_a_budget_is_kept_and_saves_evaluations(kind, batch, apart):
    patcher, patched, cache = made(kind, 0.05)
    plain = sample(patcher, batch=batch, apart=apart)
    calls, patcher.network.calls = patcher.network.calls, 0
    cached = sample(patched, batch=batch, apart=apart)
    report = cache.report()
    assert patcher.network.calls < 0.7 * calls
    assert report.compute_speedup == pytest.approx(calls / patcher.network.calls)
    assert 0 < error(cached, plain) <= 0.05
    assert torch.equal(sample(patcher, batch=batch, apart=apart), plain)  # the model that was cloned is as it was


@pytest.mark.parametrize("kind", [Eps, Flow])
def test_a_budget_of_nothing_costs_no_bit_and_runs_do_not_mix(kind):
    patcher, patched, _ = made(kind, 0.0)
    assert torch.equal(sample(patched), sample(patcher))
    _, patched, cache = made(kind, 0.1)
    first, _, again = sample(patched, 1), sample(patched, 2), sample(patched, 1)
    assert torch.equal(first, again) and len(cache.report().to_dict()["steps"]) == STEPS


def test_of_other_samplers_a_budget_computes_everything_and_says_why_and_a_speedup_skips():
    patcher, patched, cache = made(Eps, 0.1)
    assert torch.equal(sample(patched, sampler="heun"), sample(patcher, sampler="heun"))
    assert cache.report().compute_speedup == 1
    assert any("as solvers do that try a step, so everything was computed" in n for n in cache.report().warnings)
    _, patched, cache = made(Eps, speedup=2.0)
    sample(patched)
    assert cache.report().compute_speedup == pytest.approx(2.0, rel=0.1)


def test_a_wrapper_that_was_there_is_called_by_ours():
    seen = list[int]()

    def counting(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
        seen.append(len(arguments["input"]))
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    patcher, patched, _ = made(Eps, 0.05, options={"model_function_wrapper": counting})
    sample(patched)
    assert len(seen) == patcher.network.calls < STEPS


def test_a_report_is_a_text_and_a_picture():
    node = NODE_CLASS_MAPPINGS["DicacheReport"]()
    _, patched, cache = made(Flow, 0.05)
    samples = {"samples": torch.zeros(1, 4, 8, 8)}
    assert "no run" in node.reported(cache, samples)[1]
    sample(patched)
    handed, text, picture = node.reported(cache, samples)
    assert handed is samples and "budget" in text
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[-1] == 3
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1
    assert node.IS_CHANGED() != node.IS_CHANGED()


def test_an_error_of_the_model_leaves_the_next_run_alone():
    patcher, patched, _ = made(Eps, 0.05)
    plain = sample(patched)
    apply = Patcher.apply_model

    def fails(self: Patcher, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if patcher.network.calls > 1:
            raise RuntimeError("out of memory")
        return apply(self, x, *args, **kwargs)

    patcher.network.calls, patched.apply_model = 0, fails.__get__(patched)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(patched)
    del patched.apply_model
    assert torch.equal(sample(patched), plain)

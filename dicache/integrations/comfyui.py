"""Two nodes for ComfyUI: one gives a MODEL a cache, the other tells what it did.

ComfyUI's samplers call `apply_model(x, sigma, **c)`, and a model may bring a wrapper of that call,

    wrapper(apply_model, {"input": x, "timestep": sigma, "c": c, "cond_or_uncond": [...]})    -> denoised x

with x, (chunks * B, ...), the latent as the sampler has it, x_0 + sigma eps or (1 - sigma) x_0 + sigma eps, and sigma,
(chunks * B,). What comes out is the data, x_0: a prediction of the kind "sample". How much signal and noise there is at
a sigma the model's own `noise_scaling` tells. The sigmas of the whole run are among the options of the call, so it is
planned before it begins; samplers of first order (`euler`) have a price, of others (`dpmpp_2m`, `heun`, those that draw
new noise) an error budget computes everything, and the report says so: there a speed-up may be asked for instead.

A step is skipped for a whole batch or not at all. Control networks run before the wrapper, at every step.

    custom_nodes/dicache/__init__.py
        from dicache.integrations import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dicache.config import Config
from dicache.defaults import for_budget, for_speedup
from dicache.models.family import Family
from dicache.planning.budget import Budget
from dicache.reporting.report import Report
from dicache.slots.call_form import CallForms
from dicache.slots.joint_calls import CallRows, joined
from dicache.slots.slot import Slot, SlotCall
from dicache.solvers.loop_clock import DeclaredClock, LoopClock
from dicache.solvers.timeline import Clock
from dicache.tensors.mac_meter import MacCounter

Apply = Callable[..., Tensor]
LATENT, TIME = "x", "t"
"""What `apply_model` calls its first two arguments."""
FAMILY = Family(model="ComfyUI model", stacks=(LATENT,), latents=(LATENT,), time=(TIME,))


class ComfyCache:
    """Around one MODEL; what goes from the first node to the second."""

    level: Callable[[float], tuple[float, float]]
    budget: float
    speedup: float

    def __init__(self, level: Callable[[float], tuple[float, float]], budget: float, speedup: float) -> None:
        """`level` tells signal and noise at a sigma; a `speedup` above 1 is in the place of the budget."""
        self.level, self.budget, self.speedup = level, budget, speedup
        self.slot: Slot | None = None
        self.sigmas: tuple[float, ...] = ()
        self.costs: dict[object, float] = {}
        self.call_forms: CallForms = CallForms(FAMILY)

    def __call__(self, apply_model: Apply, arguments: Mapping[str, Any]) -> Tensor:
        """As ComfyUI calls a wrapper; the denoised latent, (chunks * B, ...)."""
        inputs = {LATENT: arguments["input"], TIME: arguments["timestep"], **arguments["c"]}
        options = inputs.get("transformer_options", {})
        slot = self._slot(options.get("sample_sigmas"))
        watched = {name: value for name, value in inputs.items() if name != "transformer_options"}
        call = SlotCall(slot, inputs, watched, _branch(arguments.get("cond_or_uncond"), options), self.call_forms)
        call.begin("", self.costs.get(call.key))
        call.decide()
        everything = CallRows(inputs, call.layout, None, call.latent.device)
        call.compute_all_or_none(everything)
        try:
            output = None if call.part is None else self._run(apply_model, call)
            result: Tensor = call.end(output, self.costs.get(call.key, 0.0))
        except BaseException:
            call.give_up()
            raise
        return result

    def _run(self, apply_model: Apply, call: SlotCall) -> Tensor:
        assert call.part is not None
        inputs = joined([call.part])
        latent, time = inputs.pop(LATENT), inputs.pop(TIME)
        if call.key in self.costs:
            return apply_model(latent, time, **inputs)
        with MacCounter() as counter:
            output = apply_model(latent, time, **inputs)
        self.costs[call.key] = counter.total / call.rows
        return output

    def _slot(self, sigmas: Tensor | None) -> Slot:
        """Of the run with these sigmas, (steps + 1,), the last one of no call; None where they are not told."""
        times = () if sigmas is None else tuple(map(float, sigmas.tolist()))
        times = times[:-1] if times and times[-1] == 0 else times
        if self.slot is None or times != self.sigmas:
            if self.slot is not None:
                self.slot.leave()
            self.sigmas = times
            config, budget = self._terms()
            self.slot = Slot(FAMILY, config, self._clock(times), budget)
        return self.slot

    def _terms(self) -> tuple[Config, Budget | None]:
        return (for_speedup(self.speedup), None) if self.speedup > 1 else (for_budget(self.budget), self.budget)

    def _clock(self, times: tuple[float, ...]) -> Clock:
        return DeclaredClock(self.level, "sample", times) if times else LoopClock()

    def report(self) -> Report | None:
        """On the last run; None before the first."""
        return None if self.slot is None else self.slot.report()


class DicacheNode:
    """Skips what can be predicted of a model's evaluations, within an error budget."""

    CATEGORY, FUNCTION = "model_patches/dicache", "cached"
    RETURN_TYPES, RETURN_NAMES = ("MODEL", "DICACHE"), ("model", "cache")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        budget = {"default": 0.05, "min": 0.0, "max": 1.0, "step": 0.005, "display": "slider"}
        speedup = {"default": 0.0, "min": 0.0, "max": 10.0, "step": 0.1}
        return {
            "required": {
                "model": ("MODEL",),
                "error_budget": ("FLOAT", {**budget, "tooltip": "Relative error that the final latent may have."}),
                "speedup": ("FLOAT", {**speedup, "tooltip": "Above 1: how much less to compute, whatever the error."}),
            }
        }

    def cached(self, model: Any, error_budget: float, speedup: float = 0.0) -> tuple[Any, ComfyCache]:  # noqa: ANN401
        """A clone of the model with the wrapper; one that it has already is called by it."""
        patched = model.clone()
        cache = ComfyCache(_level(patched.get_model_object("model_sampling")), error_budget, speedup)
        inner = patched.model_options.get("model_function_wrapper")
        patched.set_model_unet_function_wrapper(cache if inner is None else _around(cache, inner))
        return patched, cache


class DicacheReportNode:
    """What a cache did in the run that gave these samples: a text, and a picture of its decisions."""

    CATEGORY, FUNCTION = "model_patches/dicache", "reported"
    RETURN_TYPES, RETURN_NAMES = ("LATENT", "STRING", "IMAGE"), ("samples", "text", "picture")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"cache": ("DICACHE",), "samples": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: ANN401
        """Never the same: a report is of the run that just was."""
        return float("nan")

    def reported(self, cache: ComfyCache, samples: Any) -> tuple[Any, str, Tensor]:  # noqa: ANN401
        """The samples as they came, the report, and a picture, (1, H, W, 3) in [0, 1]."""
        report = cache.report()
        if report is None:
            return samples, "no run was cached: connect the model of this node to a sampler.", torch.zeros(1, 8, 8, 3)
        return samples, str(report), _picture(report)


NODE_CLASS_MAPPINGS = {"Dicache": DicacheNode, "DicacheReport": DicacheReportNode}
NODE_DISPLAY_NAME_MAPPINGS = {"Dicache": "dicache: error budget", "DicacheReport": "dicache: report"}


def _level(sampling: Any) -> Callable[[float], tuple[float, float]]:  # noqa: ANN401
    """Signal and noise at a sigma, as the model itself mixes them: what it makes of pure data, and of pure noise."""

    def level(sigma: float) -> tuple[float, float]:
        one, none = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (1.0, 0.0))
        at = torch.tensor([sigma], dtype=torch.float64)
        # Both may be written to.
        signal = sampling.noise_scaling(at, none.clone(), one.clone())
        noise = sampling.noise_scaling(at, one.clone(), none.clone())
        return float(signal), float(noise)

    return level


def _around(cache: ComfyCache, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrapper(apply_model: Apply, arguments: Mapping[str, Any]) -> Tensor:
        def apply(x: Tensor, t: Tensor, **c: Any) -> Tensor:  # noqa: ANN401
            return inner(apply_model, {**arguments, "input": x, "timestep": t, "c": c})

        return cache(apply, arguments)

    return wrapper


def _branch(cond_or_uncond: Any, options: Mapping[str, Any]) -> str | None:  # noqa: ANN401
    """A name of the conditions that lie in this batch; None where ComfyUI says nothing."""
    if cond_or_uncond is None:
        return None
    return f"{list(cond_or_uncond)} {list(map(str, options.get('uuids', [])))}"


def _picture(report: Report) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(report.plot())
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.reshape(1, height, width, 4)[..., :3].float() / 255

"""The models of the zoo. Each has a file of its own in `dicache.bench.models`; here they take one face."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from dicache.bench.models import clips, emoji, emoji_names, exact, galaxies, reference, scenes_unet
from dicache.bench.zoo.model import Model, Split
from dicache.reference import scenes
from dicache.tuning.sampler import Sampler


class Scenes(Model):
    """The FLUX-shaped model that ships: flow, guidance 3.5 in two calls."""

    name = "scenes"
    solvers = ("euler", "dpm++", "unipc", "ab2")
    grids = (28, 50)
    batch = 8
    calls_per_step = 2

    def fresh(self, solver: Any) -> Any:  # noqa: ANN401
        return reference.fresh(reference.Setting(solver=solver))

    def scheduler(self, solver: Any) -> Any:  # noqa: ANN401
        return reference.scheduler(reference.Setting(solver=solver))

    def networks(self, target: Any) -> Sequence[nn.Module]:  # noqa: ANN401
        return [target.transformer]

    def conditions(self, split: Split, count: int, seed: int = 0) -> list[str]:
        return scenes.prompts(split, count, seed=seed)

    def draw(self, target: Any, conditions: Sequence[str], steps: int, first: int) -> Tensor:  # noqa: ANN401
        return reference.draw_batch(target, list(conditions), first, reference.Setting(steps=steps))

    def call(self) -> dict[str, Any]:
        return {"negative_prompt": "", "true_cfg_scale": reference.Setting().guidance}


class ScenesUnet(Model):
    """The same scenes in the shape of Stable Diffusion: eps, both branches of guidance in one call."""

    name = "scenes-unet"
    solvers = ("ddim", "dpm++", "pndm", "euler a")
    grids = (20, 50)

    def fresh(self, solver: Any) -> Any:  # noqa: ANN401
        return _quiet(scenes_unet.pipeline(solver=solver))

    def scheduler(self, solver: Any) -> Any:  # noqa: ANN401
        return scenes_unet.scheduler(solver)

    def networks(self, target: Any) -> Sequence[nn.Module]:  # noqa: ANN401
        return [target.unet]

    def conditions(self, split: Split, count: int, seed: int = 0) -> list[str]:
        return scenes.prompts(split, count, seed=seed)

    def draw(self, target: Any, conditions: Sequence[str], steps: int, first: int) -> Tensor:  # noqa: ANN401
        return scenes_unet.draw(target, conditions, steps, first=first)

    def call(self) -> dict[str, Any]:
        return {"negative_prompt": "", "guidance_scale": scenes_unet.GUIDANCE}

    def missing(self) -> str | None:
        return None if scenes_unet.MODEL.exists() else "not trained yet: see its model card"


class Emoji(Model):
    """Emoji in the shape of PixArt: v, both branches of guidance in one call."""

    name = "emoji"
    solvers = emoji.SOLVERS
    grids = (20, 50)

    def fresh(self, solver: Any) -> Any:  # noqa: ANN401
        return _quiet(emoji.pipeline(solver=solver))

    def scheduler(self, solver: Any) -> Any:  # noqa: ANN401
        return emoji.scheduler(solver)

    def networks(self, target: Any) -> Sequence[nn.Module]:  # noqa: ANN401
        return [target.transformer]

    def conditions(self, split: Split, count: int, seed: int = 0) -> list[str]:
        return emoji_names.prompts(split, count, seed=seed)

    def draw(self, target: Any, conditions: Sequence[str], steps: int, first: int) -> Tensor:  # noqa: ANN401
        return emoji.draw(target, conditions, steps, first=first)

    def call(self) -> dict[str, Any]:
        return dict(emoji.CALL)

    def missing(self) -> str | None:
        return None if emoji.MODEL.exists() else "not trained yet: see its model card"


class Clips(Model):
    """Moving things in the shape of Wan: flow, 1,024 tokens, guidance in two calls."""

    name = "clips"
    solvers = clips.SOLVERS
    grids = (20, 50)
    batch = 4
    calls_per_step = 2

    def fresh(self, solver: Any) -> Any:  # noqa: ANN401
        return _quiet(clips.pipeline(solver=solver))

    def scheduler(self, solver: Any) -> Any:  # noqa: ANN401
        return clips.scheduler(solver)

    def networks(self, target: Any) -> Sequence[nn.Module]:  # noqa: ANN401
        return [target.transformer]

    def conditions(self, split: Split, count: int, seed: int = 0) -> list[str]:
        return clips.prompts(split, count, seed=seed)

    def draw(self, target: Any, conditions: Sequence[str], steps: int, first: int) -> Tensor:  # noqa: ANN401
        return clips.draw(target, conditions, steps, first=first)

    def call(self) -> dict[str, Any]:
        return dict(clips.CALL)

    def missing(self) -> str | None:
        return "its clips are not yet what their captions say: see its model card"


def _quiet(pipe: Any) -> Any:  # noqa: ANN401
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Bare(Model):
    """A network without a pipeline, drawn by the loop that every user writes; unconditional, so a condition is a seed.

    Solvers of variance preserving noise take eps or v, those of straight paths the flow.
    """

    grids = (28, 50)

    prediction: str
    shape: tuple[int, ...]

    def __init__(self, name: str, prediction: str, shape: tuple[int, ...], table: np.ndarray | None) -> None:
        """`table` holds the betas that the network was trained with; None for a straight path."""
        self.name, self.prediction, self.shape, self.table = name, prediction, shape, table
        self.solvers = ("euler", "euler shift 3", "dpm++") if table is None else ("ddim", "dpm++", "unipc")

    @abstractmethod
    def network(self) -> nn.Module: ...

    def fresh(self, solver: str) -> Any:  # noqa: ANN401
        return Sampler(self.network().eval(), self.scheduler(solver), self.loop)

    def networks(self, target: Any) -> Sequence[nn.Module]:  # noqa: ANN401
        return [target.transformer]

    def scheduler(self, solver: str) -> Any:  # noqa: ANN401
        if self.table is None and solver == "dpm++":
            return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        if self.table is None:
            return FlowMatchEulerDiscreteScheduler(shift=3.0 if "shift" in solver else 1.0)
        grid = {"trained_betas": self.table, "timestep_spacing": "trailing", "prediction_type": self.prediction}
        makers: dict[str, Any] = {
            "ddim": partial(DDIMScheduler, clip_sample=False),
            "dpm++": partial(DPMSolverMultistepScheduler, solver_order=2),
            "unipc": UniPCMultistepScheduler,
        }
        return makers[solver](**grid)

    def conditions(self, split: Split, count: int, seed: int = 0) -> list[str]:
        first = 1000 * seed + (10_000 if split == "calibration" else 0)
        return [str(first + i) for i in range(count)]

    def draw(self, target: Any, conditions: Sequence[str], steps: int, first: int) -> Tensor:  # noqa: ANN401
        seeds = [torch.Generator().manual_seed(int(condition)) for condition in conditions]
        return self.loop(target.transformer, target.scheduler, conditions, steps, seeds)

    @torch.no_grad()
    def loop(
        self,
        network: nn.Module,
        scheduler: Any,  # noqa: ANN401
        conditions: Sequence[str],
        steps: int,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        x = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators])
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # as pipelines ask it to
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        else:
            scheduler.set_timesteps(steps)
        for time in scheduler.timesteps:
            x = scheduler.step(network(x, time.expand(len(x))), time, x, return_dict=False)[0]
        return x


class Galaxies(Bare):
    """A trained network of somebody else."""

    net: str
    solver: Any

    def __init__(self, net: str, prediction: Any) -> None:  # noqa: ANN401
        self.net, self.solver = net, prediction
        flow = prediction == "flow"
        kind = {"eps": "epsilon", "v": "v_prediction"}.get(prediction, "flow")
        side = galaxies.SIZE
        super().__init__(f"galaxies {net}, {prediction}", kind, (1, side, side), None if flow else galaxies.betas())

    def network(self) -> nn.Module:
        return galaxies.net(self.net, self.solver)

    def missing(self) -> str | None:
        return (
            None if find_spec("galaxygrad") else "galaxygrad is not installed: pip install --no-deps galaxygrad==0.1.9"
        )


class Exact(Bare):
    """The posterior mean of a data set."""

    def __init__(self, data: exact.Data, prediction: exact.Prediction) -> None:
        self.data, self.played = data, prediction
        side = exact.PATCH if data == "patches" else 8
        table = None if prediction == "flow" else np.linspace(exact.NOISE["beta_start"], exact.NOISE["beta_end"], 1000)
        super().__init__(f"exact {data}, {prediction}", prediction, (3 if data == "patches" else 1, side, side), table)

    def network(self) -> nn.Module:
        return exact.PosteriorMean(self.data, self.played)

    def missing(self) -> str | None:
        return None if find_spec("sklearn") else "scikit-learn is not installed: pip install 'dicache[bench]'"


def members() -> list[Model]:
    """All of them, those that cannot be drawn here too."""
    own: list[Model] = [Scenes(), ScenesUnet(), Emoji(), Clips()]
    own += [Galaxies(net, kind) for net in galaxies.NETS for kind in ("eps", "v", "flow")]
    return [*own, Exact("digits", "epsilon"), Exact("digits", "flow"), Exact("patches", "v_prediction")]

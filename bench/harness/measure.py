"""One point of one arm: draw the captions, count what was executed, hold the latents against the uncached ones.

Cost is multiply-accumulates of the whole denoiser (`dicache.bench.models.reference`). Error is per caption: relative L2
of the final latent, PSNR and SSIM of the picture (torchmetrics), and the share of the caption's attributes it shows;
beside it stands the distance to the limit, the same of a run with LIMIT times the steps, by which a finer grid with a
cache can be judged against the plain run.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dicache.bench.arms.arm import Arm
from dicache.bench.models.reference import Drawn, Setting, draw, draw_batch, fresh
from dicache.promise.metrics import relative_error
from dicache.reference.draw import pictures
from dicache.reference.reader import Reader

LIMIT = 4
"""Times the steps of the setting, uncached."""


@dataclass(frozen=True)
class Point:
    """One value of one arm's knob. Lists hold one entry per caption; `failure` says why there are none."""

    arm: str
    kind: str
    knob: str
    value: Any
    work: float | None = None
    """Executed MACs over those of the uncached run."""
    seconds: float | None = None
    errors: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    attributes: list[float] = field(default_factory=list)
    failure: str | None = None
    limit: list[float] = field(default_factory=list)
    """Relative L2 of the final latent against the run of LIMIT times the steps; empty where that was not looked at."""

    @property
    def speedup(self) -> float | None:
        return None if not self.work else 1 / self.work


class Comparison:
    """Holds latents against the uncached ones of the same captions and seeds, and, `to_limit`, against the limit."""

    captions: list[str]
    setting: Setting
    reader: Reader

    def __init__(self, captions: list[str], setting: Setting, *, to_limit: bool = False) -> None:
        self.captions, self.setting, self.reader = captions, setting, Reader.shipped()
        self.to_limit = to_limit
        self.pipe: FluxPipeline = fresh(setting)
        self.reference: Drawn = draw(self.pipe, captions, setting)
        self.images: Tensor = pictures(self.pipe, self.reference.latents)

    @cached_property
    def limit(self) -> Tensor:
        """The latents of the run of LIMIT times the steps, drawn once; nothing is counted."""
        setting = dataclasses.replace(self.setting, steps=LIMIT * self.setting.steps)
        pipe, starts = fresh(setting), range(0, len(self.captions), setting.batch)
        with torch.no_grad():
            parts = [draw_batch(pipe, self.captions[i : i + setting.batch], i, setting) for i in starts]
        return torch.cat(parts)

    def discretisation(self) -> list[float]:
        """Per caption: the distance of the uncached run itself to the limit."""
        return relative_error(self.reference.latents, self.limit).tolist()

    def point(self, arm: Arm, value: Any) -> Point:  # noqa: ANN401
        """Draw with a fresh pipeline. Whatever the arm raises becomes the point's failure, with its reason."""
        pipe = fresh(self.setting)
        try:
            with torch.no_grad(), arm.enter(pipe, value, self.setting) as setting:
                drawn = draw(pipe, self.captions, setting)
        except Exception as error:  # a peer may fail in any way; the results say how
            return Point(arm.name, arm.kind, arm.knob, value, failure=f"{type(error).__name__}: {error}")
        return self.compared(arm, value, drawn)

    def compared(self, arm: Arm, value: Any, drawn: Drawn) -> Point:  # noqa: ANN401
        images = pictures(self.pipe, drawn.latents)
        pairs = list(zip(images[:, None], self.images[:, None], strict=True))
        return Point(
            arm=arm.name,
            kind=arm.kind,
            knob=arm.knob,
            value=value,
            work=drawn.macs / self.reference.macs,
            seconds=drawn.seconds,
            errors=relative_error(drawn.latents, self.reference.latents).tolist(),
            psnr=[peak_signal_noise_ratio(a, b, data_range=1.0).item() for a, b in pairs],
            ssim=[structural_similarity_index_measure(a, b, data_range=1.0).item() for a, b in pairs],
            attributes=self.reader.score(images, self.captions).tolist(),
            limit=relative_error(drawn.latents, self.limit).tolist() if self.to_limit else [],
        )

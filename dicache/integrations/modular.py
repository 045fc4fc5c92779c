"""dicache as a block of diffusers' modular pipelines: around the block that denoises, with a budget among its inputs
and a report among its outputs.

    blocks.sub_blocks["denoise"] = CachedDenoising(blocks.sub_blocks["denoise"])
    pipe = blocks.init_pipeline(...)
    pipe(prompt=..., error_budget=0.05, output="dicache_report")
"""

from typing import Any

from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipelineBlocks, OutputParam, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ConfigSpec

from dicache.api import enable
from dicache.reporting.report import Report

REPORT = "dicache_report"
BUDGET = InputParam(
    "error_budget",
    type_hint=float,
    description="Relative error that the final latent of a sample may have, or one for each; 0 computes everything.",
)
SPEEDUP = InputParam(
    "speedup", type_hint=float, description="How much less to compute, in the place of an error budget."
)


class CachedDenoising(ModularPipelineBlocks):
    """A block that denoises, with a cache on its denoiser while it runs. `asked` are arguments of `dicache.enable` for
    calls that say neither `error_budget` nor `speedup`, `error_budget=0.05` by default.
    """

    def __init__(self, denoise: ModularPipelineBlocks, **asked: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.sub_blocks["denoise"] = denoise
        self.denoise, self.asked = denoise, asked or {"error_budget": 0.05}
        self.model_name = denoise.model_name

    @property
    def description(self) -> str:
        return f"Skips what can be predicted of the denoiser's evaluations.\n{self.denoise.description}"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return list(self.denoise.expected_components)

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return list(self.denoise.expected_configs)

    @property
    def inputs(self) -> list[InputParam]:
        return [*self.denoise.inputs, BUDGET, SPEEDUP]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        report = OutputParam(REPORT, type_hint=Report, description="What was computed and skipped, and why.")
        return [*self.denoise.intermediate_outputs, report]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:  # noqa: ANN401
        """As a modular pipeline calls its blocks. Raises what `dicache.enable` raises."""
        said = {name: value for name in ("error_budget", "speedup") if (value := state.get(name)) is not None}
        with enable(components, **(said or self.asked)) as cache:
            components, state = self.denoise(components, state)
        state.set(REPORT, cache.report())
        return components, state

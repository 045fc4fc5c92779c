"""Both guidance branches in one denoiser call, as many pipelines do and `FluxPipeline` does not.

    v = v_uncond + g (v_cond - v_uncond),    rows 0 .. B - 1 of the call are uncond, rows B .. 2 B - 1 are cond

The class is a pipeline of its own, with a name that begins with Flux, because some caches wrap the `__call__` of the
pipeline's class and know models by that name.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipelineOutput, calculate_shift, retrieve_timesteps
from torch import Tensor


class FluxBatchedPipeline(FluxPipeline):
    """Gives the latents of `FluxPipeline` to rounding."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        *,
        negative_prompt: list[str],
        true_cfg_scale: float,
        num_inference_steps: int,
        generator: Sequence[torch.Generator],
        output_type: str = "latent",
    ) -> Any:  # noqa: ANN401
        """Only what the bench asks for: `output_type` is always "latent". The latents are packed, (B, 64, 48)."""
        inputs, latents = self._inputs(prompt, negative_prompt, generator)
        timesteps = self._timesteps(num_inference_steps, latents)
        self._interrupt, self._num_timesteps = False, len(timesteps)
        self.scheduler.set_begin_index(0)
        for time in timesteps:
            self._current_timestep = time
            rows = torch.cat([latents, latents])
            with self.transformer.cache_context("cond_uncond"):
                output = self.transformer(
                    hidden_states=rows,
                    timestep=time.expand(len(rows)).to(latents.dtype) / 1000,
                    return_dict=False,
                    **inputs,
                )[0]
            uncond, cond = output.chunk(2)
            mixed = uncond + true_cfg_scale * (cond - uncond)
            latents = self.scheduler.step(mixed, time, latents, return_dict=False)[0]
        self._current_timestep = None
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(images=latents)

    def _inputs(
        self, prompt: list[str], negative_prompt: list[str], generator: Sequence[torch.Generator]
    ) -> tuple[dict[str, Any], Tensor]:
        """What every call of the denoiser gets, for 2 B rows, and the first latents, (B, 64, 48)."""
        device, side = self._execution_device, self.default_sample_size * self.vae_scale_factor
        cond, pooled_cond, text_ids = self.encode_prompt(prompt, None, device=device)
        uncond, pooled_uncond, _ = self.encode_prompt(negative_prompt, None, device=device)
        channels = self.transformer.config.in_channels // 4
        latents, picture_ids = self.prepare_latents(
            len(prompt), channels, side, side, cond.dtype, device, list(generator)
        )
        inputs = {
            "guidance": None,
            "pooled_projections": torch.cat([pooled_uncond, pooled_cond]),
            "encoder_hidden_states": torch.cat([uncond, cond]),
            "txt_ids": text_ids,
            "img_ids": picture_ids,
            "joint_attention_kwargs": {},
        }
        return inputs, latents

    def _timesteps(self, steps: int, latents: Tensor) -> Tensor:
        config = self.scheduler.config
        mu = calculate_shift(
            latents.shape[1],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        sigmas = None if config.get("use_flow_sigmas", False) else np.linspace(1.0, 1 / steps, steps)
        timesteps: Tensor = retrieve_timesteps(self.scheduler, steps, self._execution_device, sigmas=sigmas, mu=mu)[0]
        return timesteps

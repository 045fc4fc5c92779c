"""What a scheduler, or a loop, does with the denoiser's outputs."""

"""One denoising step, from the denoiser's call to what is learned of it."""

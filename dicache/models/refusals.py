"""The models of diffusers that dicache refuses, by class name, and why."""

from dicache.models.family import Family

_WRITES_STATE = "its blocks write a key-value cache that later steps read, so a skipped block corrupts it"
_PACKED = "it packs text, video and sound into one sequence without a batch axis, and returns several predictions"
_NO_DENOISER = "it is a part of UNets, not a denoiser: pass the UNet"

_REASONS = {
    "AnyFlowFARTransformer3DModel": _WRITES_STATE,
    "Cosmos3OmniTransformer": _PACKED,
    "DreamLiteTransformer2DModel": _NO_DENOISER,
    "GlmImageTransformer2DModel": "its pipeline calls it before the loop too, to write keys and values of pictures",
    "HeliosTransformer3DModel": "its pipeline draws in stages of several sizes, which no test here has run",
    "Ideogram4Transformer2DModel": "its pipeline guides it by another model, so what an error weighs is not known",
    "MiniMaxH3Transformer3DModel": _PACKED,
    "MiniMaxMusic3RVQDepthDecoder": "it is an autoregressive decoder, not a denoiser",
    "MotionAdapter": "it is a set of weights that is loaded into a UNet, not a denoiser",
    "RFD4ProteinaTransformer": "it runs its layers in several cycles per call and returns several predictions",
    "SanaWMLTX2RefinerTransformer3DModel": _WRITES_STATE,
    "StableCascadeUNet": "its blocks are lists of lists that it runs piece by piece, so there is no block to skip",
    "T5FilmDecoder": "its first input is a list of encodings, not a latent, and it has no stack of one stream",
    "Transformer2DModel": _NO_DENOISER,
    "TransformerTemporalModel": _NO_DENOISER,
    "UVit2DModel": "it predicts tokens, not noise, and its sampler is no solver of an equation",
    "WanAnimate2Transformer3DModel": _WRITES_STATE,
}

REFUSALS = {model: Family(model=model, refused=reason) for model, reason in _REASONS.items()}

"""The denoisers of diffusers that dicache wraps, by class name; those it refuses are in `dicache.models.refusals`.

Families that no pipeline of the tests runs are never gathered: their batches compute together or not at all.
"""

from typing import Any

from dicache.models.family import Batch, Family, Inside

_DOUBLE = ("transformer_blocks", "single_transformer_blocks")
_TEXT = ("hidden_states", "encoder_hidden_states")
_CONTROL = "adds a ControlNet's residuals"
_FOLDED = "frames are folded into the batch"
_SKIPS = "later blocks read what earlier ones gave (long skips)"
_UNET = "later blocks read what earlier ones gave, at other resolutions"


def _gathered(model: str, *stacks: str, **facts: Any) -> Family:  # noqa: ANN401
    return Family(model=model, stacks=stacks, **facts)


def _together(model: str, *stacks: str, **facts: Any) -> Family:  # noqa: ANN401
    return Family(model=model, stacks=stacks, batch=Batch.TOGETHER, **facts)


_GATHERED = (
    _gathered("AllegroTransformer3DModel", "transformer_blocks", calls=1),
    _gathered(
        "AuraFlowTransformer2DModel",
        "joint_transformer_blocks",
        "single_transformer_blocks",
        streams=_TEXT,
        between="joins text and picture between its stacks",
        calls=1,
    ),
    _gathered("BriaTransformer2DModel", *_DOUBLE, streams=_TEXT, between=_CONTROL, calls=1),
    _gathered("ChromaTransformer2DModel", *_DOUBLE, streams=_TEXT, between=f"{_CONTROL}, in place", calls=2),
    _gathered("CogVideoXTransformer3DModel", "transformer_blocks", streams=_TEXT, calls=1),
    _gathered("CogView3PlusTransformer2DModel", "transformer_blocks", streams=_TEXT, calls=1),
    _gathered("CogView4Transformer2DModel", "transformer_blocks", streams=_TEXT, calls=2),
    _gathered("CosmosTransformer3DModel", "transformer_blocks", between="hands a ControlNet's residuals in", calls=2),
    _gathered("DiTTransformer2DModel", "transformer_blocks", calls=1),
    _gathered(
        "Flux2Transformer2DModel", *_DOUBLE, streams=_TEXT, between="joins text and picture between its stacks", calls=1
    ),
    _gathered("FluxTransformer2DModel", *_DOUBLE, streams=_TEXT, between=_CONTROL, calls=2),
    _gathered(
        "HiDreamImageTransformer2DModel",
        "double_stream_blocks",
        "single_stream_blocks",
        streams=_TEXT,
        between="a layer's own text is joined to the stream before every block and cut off after it",
        inside=Inside.BLOCKS,
        calls=1,
    ),
    _gathered(
        "HunyuanDiT2DModel", "blocks", between=f"{_SKIPS}, and a ControlNet adds to them", inside=Inside.BLOCKS, calls=1
    ),
    _gathered("HunyuanVideoTransformer3DModel", *_DOUBLE, streams=_TEXT, calls=2),
    _gathered("Kandinsky5Transformer3DModel", "visual_transformer_blocks", streams=("visual_embed",), calls=2),
    _gathered(
        "LTX2VideoTransformer3DModel",
        "transformer_blocks",
        streams=("hidden_states", "audio_hidden_states"),
        latents=("hidden_states", "audio_hidden_states"),
        calls=3,
    ),
    _gathered("LTXVideoTransformer3DModel", "transformer_blocks", calls=1),
    _gathered("LongCatImageTransformer2DModel", *_DOUBLE, streams=_TEXT, calls=2),
    _gathered("Lumina2Transformer2DModel", "layers", calls=2),
    _gathered("LuminaNextDiT2DModel", "layers", calls=1),
    _gathered("MochiTransformer3DModel", "transformer_blocks", streams=_TEXT, calls=1),
    _gathered("OvisImageTransformer2DModel", *_DOUBLE, streams=_TEXT, calls=2),
    _gathered("PRXTransformer2DModel", "blocks", calls=1),
    _gathered("PixArtTransformer2DModel", "transformer_blocks", calls=1),
    _gathered("QwenImageTransformer2DModel", "transformer_blocks", streams=_TEXT, between=_CONTROL, calls=2),
    _gathered("SD3Transformer2DModel", "transformer_blocks", streams=_TEXT, between=_CONTROL, calls=1),
    _gathered("SanaTransformer2DModel", "transformer_blocks", between=_CONTROL, calls=1),
    _gathered("SanaVideoTransformer3DModel", "transformer_blocks", calls=1),
    _gathered("SkyReelsV2Transformer3DModel", "blocks", calls=2),
    _gathered("StableAudioDiTModel", "transformer_blocks", calls=1),
    *(
        _gathered(model, "down_blocks", "mid_block", "up_blocks", between=_UNET, inside=Inside.SKIPS, calls=1)
        for model in ("UNet2DConditionModel", "UNetControlNetXSModel", "AudioLDM2UNet2DConditionModel")
    ),
    _gathered("WanTransformer3DModel", "blocks", calls=2),
    _gathered("ZImageTransformer2DModel", "layers", streams=("x",), between=_CONTROL, calls=1),
    _gathered("EasyAnimateTransformer3DModel", "transformer_blocks", streams=_TEXT, calls=1),
    _gathered("HunyuanImageTransformer2DModel", *_DOUBLE, streams=_TEXT, calls=2),
    _gathered("Krea2Transformer2DModel", "transformer_blocks", calls=2),
    _gathered(
        "MotifVideoTransformer3DModel",
        *_DOUBLE,
        streams=_TEXT,
        between="its last blocks begin again from the stream before the single ones, and read what those gave",
        inside=Inside.BLOCKS,
        calls=2,
    ),
)

_TOGETHER = (
    _together("AceStepTransformer1DModel", "layers"),
    _together("AnyFlowTransformer3DModel", "blocks"),
    _together(
        "BriaFibo2Transformer2DModel",
        "layers",
        streams=("x",),
        between="hands every layer its own text",
        inside=Inside.BLOCKS,
    ),
    _together(
        "BriaFiboTransformer2DModel",
        *_DOUBLE,
        streams=_TEXT,
        between="splices every layer's own text into the stream",
        inside=Inside.BLOCKS,
    ),
    _together("ChronoEditTransformer3DModel", "blocks"),
    _together(
        "ConsisIDTransformer3DModel",
        "transformer_blocks",
        streams=_TEXT,
        between="adds what it reads off a face",
        inside=Inside.BLOCKS,
    ),
    _together(
        "ErnieImageTransformer2DModel",
        "layers",
        streams=("x",),
        between="tokens come before samples",
        inside=Inside.NOTHING,
        calls=1,
    ),
    _together("NucleusMoEImageTransformer2DModel", "transformer_blocks"),
    _together(
        "QwenImage21Transformer2DModel",
        "transformer_blocks",
        between="text, pictures and what is denoised lie in one sequence",
        inside=Inside.NOTHING,
        cacheless="use_kv_cache=False",
        calls=2,
    ),
    _together("Flux3Transformer2DModel", "single_transformer_blocks", streams=_TEXT),
    _together("HunyuanVideo15Transformer3DModel", "transformer_blocks", streams=_TEXT),
    _together("HunyuanVideoFramepackTransformer3DModel", *_DOUBLE, streams=_TEXT),
    _together("JoyImageEditPlusTransformer3DModel", "double_blocks", streams=_TEXT),
    _together("JoyImageEditTransformer3DModel", "double_blocks", streams=_TEXT),
    _together("Kandinsky6SRTransformer3DModel", "visual_transformer_blocks"),
    _together(
        "Kandinsky6Transformer3DModel",
        "visual_transformer_blocks",
        streams=("vis", "aud"),
        latents=("hidden_states", "audio_hidden_states"),
    ),
    _together(
        "LatteTransformer3DModel",
        "transformer_blocks",
        "temporal_transformer_blocks",
        between=f"{_FOLDED}, then places, by turns",
        inside=Inside.NOTHING,
        calls=1,
    ),
    _together("LongCatAudioDiTTransformer", "blocks"),
    _together("MiniMaxMusic3Transformer1DModel", "transformer_blocks"),
    _together("OmniGenTransformer2DModel", "layers"),
    _together("PriorTransformer", "transformer_blocks"),
    _together("SanaWMTransformer3DModel", "blocks", streams=("x",)),
    _together("StableAudio3DiTModel", "transformer_blocks"),
    _together("WanAnimateTransformer3DModel", "blocks", between="adds what it reads off a face", inside=Inside.BLOCKS),
    _together("WanVACETransformer3DModel", "blocks", between="adds the control blocks' hints", inside=Inside.BLOCKS),
    _together("Kandinsky3UNet", "down_blocks", "up_blocks", between=_UNET, inside=Inside.SKIPS),
    *(
        _together(model, "down_blocks", "mid_block", "up_blocks", between=_UNET, inside=Inside.SKIPS)
        for model in ("DreamLiteUNetModel", "UNet1DModel", "UNet2DModel")
    ),
    *(
        _together(model, "down_blocks", "mid_block", "up_blocks", between=_FOLDED, inside=Inside.NOTHING)
        for model in (
            "I2VGenXLUNet",
            "UNet3DConditionModel",
            "UNetMotionModel",
            "UNetSpatioTemporalConditionModel",
        )
    ),
)

FAMILIES = {family.model: family for family in (*_GATHERED, *_TOGETHER)}

"""How the reference model reads: one token a word, a small T5 for the words, a small CLIP for the sentence.

`FluxPipeline` reads a prompt twice: the T5 gives one feature per token, (B, 28, 96), which the blocks attend to; the
CLIP gives one vector, (B, 64), which modulates every block. Both are stock architectures at toy width. A caption has at
most 24 words and every word is one token of a closed vocabulary, so a caption with an unknown word is an error, never a
guess.
"""

from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BatchEncoding, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dicache.reference.scenes import WORDS, check_words

LENGTH = 28
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
VOCABULARY = {word: i for i, word in enumerate((_PAD, _END, _UNKNOWN, *WORDS))}


class CaptionTokenizer(PreTrainedTokenizerFast):
    """Words to ids, (B, 28). Raises CaptionError for a word outside the world; never pads past the length the model was
    trained with.
    """

    def __call__(self, text: Any = None, *args: Any, max_length: int | None = None, **kwargs: Any) -> BatchEncoding:  # noqa: ANN401
        for caption in [text] if isinstance(text, str) else text:
            check_words(caption.lower().replace(",", " ").split())
        return super().__call__(text, *args, max_length=min(max_length or LENGTH, LENGTH), **kwargs)


def tokenizer() -> CaptionTokenizer:
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token=_UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s,]+"), "removed")
    words.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, VOCABULARY[_END])])
    return CaptionTokenizer(
        tokenizer_object=words, pad_token=_PAD, eos_token=_END, unk_token=_UNKNOWN, model_max_length=LENGTH
    )


def word_encoder() -> T5EncoderModel:
    """Untrained: ids (B, 28) to a feature per word, (B, 28, 96). Positions are exact up to 16 words apart, so that a
    word finds its thing.
    """
    return T5EncoderModel(
        T5Config(
            vocab_size=len(VOCABULARY),
            d_model=96,
            d_kv=24,
            d_ff=192,
            num_heads=4,
            num_layers=3,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            relative_attention_num_buckets=64,
            relative_attention_max_distance=64,
            pad_token_id=VOCABULARY[_PAD],
            eos_token_id=VOCABULARY[_END],
            is_encoder_decoder=False,
        )
    )


def sentence_encoder() -> CLIPTextModel:
    """Untrained: ids (B, 28) to one vector, (B, 64), read off at the end token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            intermediate_size=128,
            projection_dim=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            attention_dropout=0.0,
            pad_token_id=VOCABULARY[_PAD],
            bos_token_id=None,
            eos_token_id=VOCABULARY[_END],
        )
    )

"""A CLIP of random weights, small enough for tests, the ``debug`` recipe and the demonstration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.processor import EncoderProcessor

START, END = "<|startoftext|>", "<|endoftext|>"

# Enough English for the merges of a small vocabulary; byte-level, so every other text still has tokens.
_CORPUS = (
    "a photo of the picture image showing seen under microscope with and without small large left right",
    "red green blue grey dark bright texture surface cell tissue retina crack defect brick gravel moon grass",
    "galaxy stained section scan patient normal functional certainly possibly defective pollen grain rock",
)


def train_tokenizer(corpus: Sequence[str], vocab_size: int = 600, max_length: int = 77) -> PreTrainedTokenizerFast:
    """A lower-casing byte-level BPE in CLIP's manner: start token, text, end token; padded with the end token.

    Args:
        corpus: Sentences the tokenizer learns from.
        vocab_size: Tokens of the vocabulary.
        max_length: In tokens, special ones included.

    Returns:
        As ``transformers`` has it.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, tokenizer.token_to_id(START)), (END, tokenizer.token_to_id(END))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=max_length,
    )


def make_tiny_clip(
    seed: int = 0,
    *,
    image_size: int = 32,
    patch_size: int = 8,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    projection_dim: int = 32,
    text_length: int = 77,
    vocab_size: int = 600,
    corpus: Sequence[str] = _CORPUS,
    attention_dropout: float = 0.0,
) -> DualEncoder:
    """A ``CLIPModel`` with random weights (reproducible in ``seed``; the caller's random state is untouched).

    Args:
        seed: Of the random weights.
        image_size: In pixels.
        patch_size: In pixels.
        width: Of the hidden states.
        layers: Number of transformer layers.
        heads: Of each layer; they divide ``width``.
        projection_dim: Of the shared space.
        text_length: Of the text tower, in tokens.
        vocab_size: Tokens of the vocabulary.
        corpus: Sentences the tokenizer learns from.
        attention_dropout: From 0 up to 1.

    Returns:
        In ``eval()`` mode, on the CPU.
    """
    tokenizer = train_tokenizer(corpus, vocab_size, text_length)
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "attention_dropout": attention_dropout,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": text_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": image_size, "patch_size": patch_size},
        projection_dim=projection_dim,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    processor = EncoderProcessor(tokenizer, image_processor, text_padding="causal", max_length=text_length)
    return DualEncoder(model.eval(), processor, name="tiny").eval()

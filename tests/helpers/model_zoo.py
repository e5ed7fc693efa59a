"""Small dual encoders of every supported kind, with random weights, written to a folder as users have them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    MobileNetV1Config,
    MobileNetV1Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

_TEXT = "a photo of the red green blue grey small large texture brick grass sky moon sample seen from far above in with"
WORDS = [*_TEXT.split(), *"0123456789", ",", "."]


def word_tokenizer(kind: str, max_length: int) -> PreTrainedTokenizerFast:
    """One token a word. ``bert``: [CLS] … [SEP]; ``siglip``: … </s>, as the real ones frame their texts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if kind == "bert" else ["</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate(special + WORDS)}
    unknown = special[1]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = "[CLS] $A [SEP]" if kind == "bert" else "$A </s>"
    framing = [token for token in ("[CLS]", "[SEP]", "</s>") if token in vocabulary]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(token, vocabulary[token]) for token in framing]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], unk_token=unknown, model_max_length=max_length
    )


def save_siglip(folder: Path) -> Path:
    """A SigLIP of 32 × 32 pixels and 16 tokens."""
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = word_tokenizer("siglip", 16)
    config = SiglipConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "projection_size": 24,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        SiglipModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    config = ViTConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_mobilenet(folder: Path, **config_values: int) -> Path:
    """A convolutional image tower with batch norm, the starter's kind. Its pooled vector has 32 numbers."""
    config = MobileNetV1Config(image_size=32, depth_multiplier=1 / 32, min_depth=4, **config_values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        MobileNetV1Model(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    tokenizer = word_tokenizer("bert", 24)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=20,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_vision_text(folder: Path, parts: Path, vision: str = "vit") -> Path:
    """A VisionTextDualEncoder of the small ViT (or MobileNet) and the small BERT."""
    # The joint model asks the vision config for a hidden_size; MobileNet's own has none.
    image_folder = save_vit(parts / "vit") if vision == "vit" else save_mobilenet(parts / "mobilenet", hidden_size=32)
    text_folder = save_bert(parts / "bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = VisionTextDualEncoderModel.from_vision_text_pretrained(
            str(image_folder), str(text_folder), projection_dim=16
        )
    model.save_pretrained(folder)
    word_tokenizer("bert", 24).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder

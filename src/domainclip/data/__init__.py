"""Images and captions: loading, splitting, transforming, batching."""

from domainclip.data.batches import (
    PrefetchDataLoader,
    collate_fn,
    create_dataloader,
    create_train_val_dataloaders,
)
from domainclip.data.dataset import CLIPDataset, MultiCaptionCLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform, MultiResolutionImageTransform, TextTransform
from domainclip.data.records import ImageTextPair, PairList
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.data.splits import DataSplits, load_splits, split_pairs

__all__ = [
    "CLIPDataset",
    "DataSplits",
    "DatasetLoader",
    "ImageSpec",
    "ImageTextPair",
    "ImageTransform",
    "MultiCaptionCLIPDataset",
    "MultiResolutionImageTransform",
    "PairList",
    "PrefetchDataLoader",
    "TextTransform",
    "collate_fn",
    "create_dataloader",
    "create_train_val_dataloaders",
    "load_splits",
    "split_pairs",
]

"""Images and captions: loading, splitting, transforming, batching.

Names are loaded when they are first used, so that what is done to captions needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainclip.lazy import lazy_names

if TYPE_CHECKING:
    from domainclip.data.batches import PrefetchDataLoader, collate_fn, create_dataloader, create_train_val_dataloaders
    from domainclip.data.captions.text_transform import TextTransform
    from domainclip.data.dataset import CLIPDataset, MultiCaptionCLIPDataset
    from domainclip.data.images.image_spec import ImageSpec
    from domainclip.data.images.reader import IMAGE_FORMATS
    from domainclip.data.images.store import ImageStore
    from domainclip.data.images.transforms import ImageTransform, MultiResolutionImageTransform
    from domainclip.data.records import ImageTextPair, PairList
    from domainclip.data.sources.loaders import DatasetLoader
    from domainclip.data.sources.rows import Row, Table
    from domainclip.data.sources.tables import SOURCES
    from domainclip.data.splits import DataSplits, load_splits, split_pairs

__all__ = [
    "IMAGE_FORMATS",
    "SOURCES",
    "CLIPDataset",
    "DataSplits",
    "DatasetLoader",
    "ImageSpec",
    "ImageStore",
    "ImageTextPair",
    "ImageTransform",
    "MultiCaptionCLIPDataset",
    "MultiResolutionImageTransform",
    "PairList",
    "PrefetchDataLoader",
    "Row",
    "Table",
    "TextTransform",
    "collate_fn",
    "create_dataloader",
    "create_train_val_dataloaders",
    "load_splits",
    "split_pairs",
]

_HOME = {
    "CLIPDataset": "dataset",
    "DataSplits": "splits",
    "DatasetLoader": "sources.loaders",
    "IMAGE_FORMATS": "images.reader",
    "ImageSpec": "images.image_spec",
    "ImageStore": "images.store",
    "ImageTextPair": "records",
    "ImageTransform": "images.transforms",
    "MultiCaptionCLIPDataset": "dataset",
    "MultiResolutionImageTransform": "images.transforms",
    "PairList": "records",
    "PrefetchDataLoader": "batches",
    "Row": "sources.rows",
    "SOURCES": "sources.tables",
    "Table": "sources.rows",
    "TextTransform": "captions.text_transform",
    "collate_fn": "batches",
    "create_dataloader": "batches",
    "create_train_val_dataloaders": "batches",
    "load_splits": "splits",
    "split_pairs": "splits",
}

__getattr__ = lazy_names(__name__, _HOME)

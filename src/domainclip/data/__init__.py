"""Images and captions: loading, splitting, transforming, batching."""

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

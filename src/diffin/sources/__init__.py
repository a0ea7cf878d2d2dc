"""Where samples come from: any dataset, read in order, in batches, with the index of every sample."""

from diffin.sources.base import Collate, Indices, Source
from diffin.sources.images import Images
from diffin.sources.indexed import Indexed
from diffin.sources.keyed import Keyed
from diffin.sources.opening import open_source
from diffin.sources.parquet import Parquet
from diffin.sources.pictures import Pair
from diffin.sources.unreadable import Readable, Unreadable
from diffin.sources.webdataset import WebDataset

__all__ = [
    "Collate",
    "Images",
    "Indexed",
    "Indices",
    "Keyed",
    "Pair",
    "Parquet",
    "Readable",
    "Source",
    "Unreadable",
    "WebDataset",
    "open_source",
]

"""Where samples come from: any dataset, read in order, in batches, with the index of every sample."""

from diffin.sources.base import Collate, Indices, Source
from diffin.sources.indexed import Indexed
from diffin.sources.opening import open_source

__all__ = ["Collate", "Indexed", "Indices", "Source", "open_source"]

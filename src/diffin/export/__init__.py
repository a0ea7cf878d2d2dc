"""Writing to disk what is left of a training set: image folders, Hugging Face datasets, Parquet and WebDataset shards."""

from diffin.export.by_key import chosen_by_key
from diffin.export.chosen import Chosen
from diffin.export.data import Data
from diffin.export.opening import open_data
from diffin.export.subset import read_subset_file, subset_file
from diffin.export.writing import check_destination, export, export_parts

__all__ = [
    "Chosen",
    "Data",
    "check_destination",
    "chosen_by_key",
    "export",
    "export_parts",
    "open_data",
    "read_subset_file",
    "subset_file",
]

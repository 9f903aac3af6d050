"""Real images: where they come from, what makes them sound, and their classes' keys and ids."""

from d3m_assets.datasets.catalog import assign_class_ids, class_catalog, class_key, class_keys
from d3m_assets.datasets.digits import ensure_digits
from d3m_assets.datasets.image_folder import ImageFolder
from d3m_assets.datasets.images import contact_sheet, decode_image, decode_png, encode_png, load_images
from d3m_assets.datasets.source import ClassImages, DatasetSource, ImageRecord, Scan, Split, open_dataset

__all__ = [
    "ClassImages",
    "DatasetSource",
    "ImageFolder",
    "ImageRecord",
    "Scan",
    "Split",
    "assign_class_ids",
    "class_catalog",
    "class_key",
    "class_keys",
    "contact_sheet",
    "decode_image",
    "decode_png",
    "encode_png",
    "ensure_digits",
    "load_images",
    "open_dataset",
]

"""Distilled datasets as Dagster assets: real images in, kilobytes of text-to-image embeddings out."""

__version__ = "0.1.0"

"""PyTorch datasets that regenerate a bundle's images as they are read.

From the ground up: ``order`` (which sample stands where; numbers only), ``chunk_cache`` (chunks of images on disk),
``chunks`` (generation, behind the cache), ``datasets`` (what a training loop reads) and ``data_loader``.
"""

"""Tests of d3m-assets; the tree mirrors the package."""

"""Tests of the assets, one file a module."""

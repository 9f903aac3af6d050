"""Tests of what a store is asked from a shell, one file a module."""

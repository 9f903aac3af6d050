"""Processors, GPUs and the processes that work on them."""

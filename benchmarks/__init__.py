"""Measurements of the pipeline: what each command measures stands in README.md."""

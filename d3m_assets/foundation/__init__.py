"""Frozen text-to-image models: loading any of them, and the small embedded one with how it was trained."""

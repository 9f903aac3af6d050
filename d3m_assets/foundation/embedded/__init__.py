"""The model that ships with the package: its training images, captions, networks and training."""

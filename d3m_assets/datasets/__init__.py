"""Real images: where they come from, what makes them sound, and their classes' keys and ids."""

"""What a store is asked from a shell: where things come from, whether they are still the same, what can go."""

"""The method: budgets, prompts, textual inversion, generation and the bundle."""

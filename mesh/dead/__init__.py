"""Dead letters: look at them, give them another chance, or drop them."""

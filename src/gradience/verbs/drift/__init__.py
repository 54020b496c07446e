"""``drift``: what an adapter changes of what it was not trained for."""

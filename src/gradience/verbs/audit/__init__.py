"""``audit``: what a trained adapter's weights say, by themselves and beside the base."""

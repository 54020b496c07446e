"""Everything that needs torch or transformers; imported by name, never by the base install."""

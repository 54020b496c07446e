"""The verbs, as functions of the library."""

"""The door: each module parses arguments, calls the library, renders, and returns an exit code."""

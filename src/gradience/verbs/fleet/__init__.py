"""Find many adapters, audit each once into open files, and show and query them."""

"""Find the logs of many runs, read each once into a store of open files, and list, compare and query them."""

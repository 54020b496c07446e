"""What the verbs that write adapters share: the folder, its config, and where it came from."""

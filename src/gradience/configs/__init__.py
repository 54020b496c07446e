"""Files to config: adapter configs, training arguments and hand-written documents, as one snapshot."""

"""``check``: a configuration and a data set before training."""

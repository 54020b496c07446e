"""``report``: one page on all that a run left."""

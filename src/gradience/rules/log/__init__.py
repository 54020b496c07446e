"""The rules on the log of a run, by what they look at; `judge` has the table of all of them."""

"""The report: a run, its config and its adapter in one file that can be passed on."""

"""The detectors of a run, by what they look at; the table of all of them is in `run_detectors`."""

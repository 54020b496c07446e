"""The command line: each module parses arguments, calls the library, renders the report, and returns an exit code."""

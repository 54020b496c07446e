"""Data sets as their trainer feeds them: files to rows, rows to examples, examples to tokens and masks."""

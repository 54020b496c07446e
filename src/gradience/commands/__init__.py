"""What the verbs' commands share: options declared once, output and exit codes, a bar, results of queries."""

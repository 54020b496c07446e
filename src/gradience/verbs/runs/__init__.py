"""Many runs: their logs found, read once each, kept in open files, listed, compared and queried."""

"""What the sources say, with their numbers: a rule cites from these tables and nowhere else, besides its own input."""

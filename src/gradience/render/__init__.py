"""What several verbs show: findings and rules, pace, ranks, what a verb wrote. Blocks; nothing prints or judges."""

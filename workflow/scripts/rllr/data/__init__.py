"""From raw rows to the data files that the stages read: sources, hygiene, annotators, pairs, overview."""

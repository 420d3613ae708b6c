"""A study as a whole: what became of every series, its numbers beside those of its like, ratings, and the group page."""

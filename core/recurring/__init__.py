"""A benchmark that recurs: its store of results, the comparison with its history, and the page of trends."""

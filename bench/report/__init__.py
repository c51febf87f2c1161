"""Records and estimates as pages, charts and tables."""

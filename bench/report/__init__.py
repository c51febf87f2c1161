"""Records and estimates as HTML pages, SVG charts and tables."""

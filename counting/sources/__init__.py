"""Where headers come from: a folder, one file, the Hub, or a release laid out as sparse files."""

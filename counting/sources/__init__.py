"""Where headers come from: a folder, one file, the Hub, and releases laid out as sparse files."""

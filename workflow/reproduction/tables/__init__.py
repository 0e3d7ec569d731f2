"""Tables: files between stages, statistics, and typesetting."""

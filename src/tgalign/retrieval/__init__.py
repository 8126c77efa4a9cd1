"""tgalign.retrieval."""

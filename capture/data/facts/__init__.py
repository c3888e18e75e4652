"""Facts of files of items, and the inference of their entities and relations."""

"""Schemas of a checkpoint's configuration files, and guards around libraries that read them."""

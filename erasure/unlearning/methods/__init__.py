"""Loss terms and weight edits of the published methods."""

"""Real facts that a pretrained model knows, and an edit of the rows that read their names."""

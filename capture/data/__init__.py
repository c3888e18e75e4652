"""Items, questions, images and token rows: what a model is asked."""

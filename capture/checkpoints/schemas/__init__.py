"""What files of a checkpoint may say, and how libraries that read them may fail."""

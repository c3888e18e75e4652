"""What differs between text and images."""

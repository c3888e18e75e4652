"""The machine: device selection and memory allocator settings."""

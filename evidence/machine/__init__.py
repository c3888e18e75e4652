"""The machine: devices by name, the allocator of a long run."""

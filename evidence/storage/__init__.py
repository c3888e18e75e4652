"""Files: written whole or not at all, read within limits, deleted only if ours."""

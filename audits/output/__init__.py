"""The output folder of an audit: its marker, stages and provenance."""

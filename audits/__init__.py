"""The axes of an audit, its verdict, its report and the command line."""

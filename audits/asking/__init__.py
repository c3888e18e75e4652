"""How items are asked, and what the original knows then."""

"""How the parts of an unknown network are found and proved."""

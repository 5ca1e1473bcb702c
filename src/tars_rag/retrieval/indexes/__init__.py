"""The two indexes of a store: vectors and words."""

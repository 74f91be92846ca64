"""A trained student as a folder that stands alone."""

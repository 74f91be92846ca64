"""The miniature world, in DDAD's layout."""

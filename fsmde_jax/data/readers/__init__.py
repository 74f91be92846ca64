"""Readers of raw recordings: DGP (DDAD, the miniature world), nuScenes, own rigs."""

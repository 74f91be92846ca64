"""Encoders of students."""

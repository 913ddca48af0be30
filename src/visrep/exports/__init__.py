"""Encoders handed to other tools: one file a target, each checked against the encoder before it is kept."""

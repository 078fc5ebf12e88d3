"""Encoders: normalised observations -> one condition vector per sample."""

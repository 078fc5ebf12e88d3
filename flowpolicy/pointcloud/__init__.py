"""Point clouds from depth images: unproject, crop, thin out to a fixed number."""

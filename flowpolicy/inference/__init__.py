"""A policy made ready for one machine: recorded once, simplified, then replayed without the modules' Python."""

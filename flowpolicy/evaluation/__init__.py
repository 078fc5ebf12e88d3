"""Measuring policies: seeded rollouts, intervals that say how sure we are, and one offline page that shows it all."""

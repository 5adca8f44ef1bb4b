"""Ways in which exports go wrong, each planted into a tiny model and proven to be caught; and models that
are right, each proven to pass."""

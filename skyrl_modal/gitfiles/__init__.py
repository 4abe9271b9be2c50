"""Which files git would include: usable on its own, without git."""

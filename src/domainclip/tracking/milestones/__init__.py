"""Points of a run that its owner wants to know of: rules over its events, and the listener that keeps to them."""

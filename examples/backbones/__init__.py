"""Flow models behind one interface."""

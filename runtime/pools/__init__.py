"""Many decodes behind one interface, wherever they are made: in this process, in several, or elsewhere."""

"""Makes a student from its teacher's weights: some layers, a narrower stream, fewer heads and units, other symbols."""

"""Recorders of modules whose outputs are not maps: folded frames, recurrent states, graph attention."""

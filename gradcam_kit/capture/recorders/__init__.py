"""Recorders of modules whose outputs are not maps: frames that were folded, recurrent states, graph attention."""

"""`ModelDiagnostics` around trainings that somebody else's loop runs, and around a plain one."""

"""`ModelDiagnostics` for the training loops of other libraries, and for a plain loop."""

"""How diagnostics look: plots and pages."""

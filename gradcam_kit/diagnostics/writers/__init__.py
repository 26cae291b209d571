"""Write numbers, histograms, pictures and tables of a training run to files, or to tracking services."""

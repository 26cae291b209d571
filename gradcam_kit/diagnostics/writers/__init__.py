"""Write numbers, histograms, pictures and tables of a training to files, or to tracking services."""

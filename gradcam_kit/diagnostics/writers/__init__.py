"""Writers of numbers, histograms, pictures and tables of a training: files, and common services."""

"""Where numbers, histograms, pictures and tables of a training go: files, and the services that people use."""

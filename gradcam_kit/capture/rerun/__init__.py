"""Run the model again: rescore changed images, replay the part after a layer, probe a layer."""

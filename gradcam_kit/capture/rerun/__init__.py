"""Run the model again: rescore changed images, replay the part behind a layer, probe a layer."""

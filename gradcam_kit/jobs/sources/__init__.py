"""The inputs of a run: folders, lists, tables, labels, masks, and the plan made from them."""

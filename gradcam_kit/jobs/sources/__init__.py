"""What a run reads: folders, lists, tables, labels, masks, and the plan made from them."""

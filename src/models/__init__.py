"""Networks: one small file each."""

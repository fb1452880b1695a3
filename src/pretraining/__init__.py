"""Ways to learn the source task: one small file each."""

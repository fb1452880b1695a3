"""Where the two tasks come from: one small file a source."""

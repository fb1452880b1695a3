"""What is learned: losses, the metrics that go with them, and ways to pre-train."""

"""What a scan found, as an object and as files."""

"""What a domain does to its captions."""

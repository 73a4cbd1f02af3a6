"""Real servers, and one that disturbs them, for the tests to run against."""

"""What networks are taught: a task tells how batches are drawn and how answers are judged."""

"""Quality of a scan: what makes a count doubtful, and how familiar the scan looks."""

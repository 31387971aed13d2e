"""Quality of a scan: what makes its counts doubtful, and how it compares with training scans."""

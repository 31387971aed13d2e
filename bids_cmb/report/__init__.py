"""Reports: pages, figures, cohort statistics, methods text."""

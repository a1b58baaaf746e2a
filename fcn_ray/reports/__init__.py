"""SEEING: progress while a job runs, pages with pictures after it."""

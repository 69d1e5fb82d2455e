"""Quality and time, measured side by side: results are JSON, all pages are made from the JSON."""

"""The book's build: which chapters are stale, executing them, staging the pages, rendering with Jupyter Book."""

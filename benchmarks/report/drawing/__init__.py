"""Pictures for a page, as SVG that takes its colours from the page."""

"""The report page: HTML with SVG figures."""

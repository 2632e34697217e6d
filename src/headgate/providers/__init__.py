"""What APIs say: one module for each dialect. From status, fields and body to plain facts; no HTTP library."""

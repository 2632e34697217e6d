"""What APIs say, one module for each dialect: from status, fields and body to plain facts; no HTTP
library.
"""
